// Command svid reads a certificate chain and a trust bundle as go-spiffe does and verifies the one with the other.
// It prints the SPIFFE ID, or fails with go-spiffe's reason.
package main

import (
	"encoding/pem"
	"fmt"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"crypto/x509"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("usage: svid TRUST-DOMAIN CHAIN.pem ANCHORS.pem")
	}
	domain, err := spiffeid.TrustDomainFromString(args[0])
	if err != nil {
		return err
	}
	chain, err := certificates(args[1])
	if err != nil {
		return err
	}
	anchors, err := certificates(args[2])
	if err != nil {
		return err
	}
	bundle := x509bundle.FromX509Authorities(domain, anchors)
	id, _, err := x509svid.Verify(chain, bundle, x509svid.WithTime(time.Now()))
	if err != nil {
		return err
	}
	fmt.Println(id)
	return nil
}

func certificates(path string) ([]*x509.Certificate, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var all []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		all = append(all, certificate)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: no certificate", path)
	}
	return all, nil
}
