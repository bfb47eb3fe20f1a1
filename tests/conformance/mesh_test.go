// Package conformance runs Gateway API's own mesh conformance suite, as published, against the cluster in $KUBECONFIG.
package conformance

import (
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
)

func TestMesh(t *testing.T) {
	conformance.RunConformance(t)
}
