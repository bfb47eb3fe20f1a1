// Command api calls every method of linkerd2-proxy-api with the code that protoc generated for Go, as a client that has
// never heard of Gossamer: it makes a key, has it certified, asks the destination service with that certificate, and taps
// a proxy. It prints what it was told in a line per method, or fails with the reason.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/linkerd/linkerd2-proxy-api/go/destination"
	"github.com/linkerd/linkerd2-proxy-api/go/identity"
	"github.com/linkerd/linkerd2-proxy-api/go/inbound"
	"github.com/linkerd/linkerd2-proxy-api/go/net"
	"github.com/linkerd/linkerd2-proxy-api/go/outbound"
	"github.com/linkerd/linkerd2-proxy-api/go/tap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

const usage = "usage: api ANCHORS.pem NAME TOKEN WORKLOAD IDENTITY-ADDR IDENTITY-NAME DESTINATION-ADDR DESTINATION-NAME " +
	"SERVICE:PORT SERVICE-ADDR TAP-ADDR URL"

func main() {
	if len(os.Args) != 13 {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	pem, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s: no certificates", args[0])
	}
	name, token, workload := args[1], args[2], args[3]
	certificate, err := certify(ctx, roots, name, token, args[4], args[5])
	if err != nil {
		return fmt.Errorf("Identity.Certify: %w", err)
	}
	config := &tls.Config{RootCAs: roots, ServerName: args[7], Certificates: []tls.Certificate{*certificate}}
	conn, err := grpc.NewClient(args[6], grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := discover(ctx, conn, workload, args[8], args[9]); err != nil {
		return err
	}
	return observe(ctx, args[10], args[11])
}

func certify(ctx context.Context, roots *x509.CertPool, name, token, addr, server string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{name}}, key)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: roots, ServerName: server}
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	request := &identity.CertifyRequest{Identity: name, Token: []byte(token), CertificateSigningRequest: csr}
	answer, err := identity.NewIdentityClient(conn).Certify(ctx, request)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(answer.LeafCertificate)
	if err != nil {
		return nil, err
	}
	between := x509.NewCertPool()
	for _, der := range answer.IntermediateCertificates {
		one, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		between.AddCert(one)
	}
	usages := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	verify := x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: between, KeyUsages: usages}
	if _, err := leaf.Verify(verify); err != nil {
		return nil, err
	}
	if until := answer.ValidUntil.AsTime(); until.Before(time.Now()) || until.After(leaf.NotAfter.Add(time.Second)) {
		return nil, fmt.Errorf("valid until %s, the certificate until %s", until, leaf.NotAfter)
	}
	fmt.Println("Identity.Certify", leaf.DNSNames[0])
	chain := append([][]byte{answer.LeafCertificate}, answer.IntermediateCertificates...)
	return &tls.Certificate{Certificate: chain, PrivateKey: key}, nil
}

func discover(ctx context.Context, conn *grpc.ClientConn, workload, service, addr string) error {
	destinations := destination.NewDestinationClient(conn)
	wanted := &destination.GetDestination{Scheme: "k8s", Path: service, ContextToken: workload}
	updates, err := destinations.Get(ctx, wanted)
	if err != nil {
		return fmt.Errorf("Destination.Get: %w", err)
	}
	update, err := updates.Recv()
	if err != nil {
		return fmt.Errorf("Destination.Get: %w", err)
	}
	if len(update.GetAdd().GetAddrs()) == 0 {
		return fmt.Errorf("Destination.Get: no endpoint: %v", update)
	}
	endpoint := update.GetAdd().GetAddrs()[0]
	fmt.Println("Destination.Get", endpoint.GetTlsIdentity().GetDnsLikeIdentity().GetName())

	profiles, err := destinations.GetProfile(ctx, &destination.GetDestination{Path: addr, ContextToken: workload})
	if err != nil {
		return fmt.Errorf("Destination.GetProfile: %w", err)
	}
	profile, err := profiles.Recv()
	if err != nil {
		return fmt.Errorf("Destination.GetProfile: %w", err)
	}
	fmt.Println("Destination.GetProfile", profile.GetFullyQualifiedName())

	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		return err
	}
	four := at.Addr().As4()
	ip := uint32(four[0])<<24 | uint32(four[1])<<16 | uint32(four[2])<<8 | uint32(four[3])
	target := &net.TcpAddress{Ip: &net.IPAddress{Ip: &net.IPAddress_Ipv4{Ipv4: ip}}, Port: uint32(at.Port())}
	traffic := &outbound.TrafficSpec{SourceWorkload: workload, Target: &outbound.TrafficSpec_Addr{Addr: target}}
	policies := outbound.NewOutboundPoliciesClient(conn)
	policy, err := policies.Get(ctx, traffic)
	if err != nil {
		return fmt.Errorf("OutboundPolicies.Get: %w", err)
	}
	fmt.Println("OutboundPolicies.Get", policy.GetMetadata().GetResource().GetName())
	watch, err := policies.Watch(ctx, traffic)
	if err != nil {
		return fmt.Errorf("OutboundPolicies.Watch: %w", err)
	}
	if policy, err = watch.Recv(); err != nil {
		return fmt.Errorf("OutboundPolicies.Watch: %w", err)
	}
	fmt.Println("OutboundPolicies.Watch", policy.GetMetadata().GetResource().GetName())

	servers := inbound.NewInboundServerPoliciesClient(conn)
	port := &inbound.PortSpec{Workload: workload, Port: 8080}
	server, err := servers.GetPort(ctx, port)
	if err != nil {
		return fmt.Errorf("InboundServerPolicies.GetPort: %w", err)
	}
	fmt.Println("InboundServerPolicies.GetPort", len(server.GetAuthorizations()))
	changes, err := servers.WatchPort(ctx, port)
	if err != nil {
		return fmt.Errorf("InboundServerPolicies.WatchPort: %w", err)
	}
	if server, err = changes.Recv(); err != nil {
		return fmt.Errorf("InboundServerPolicies.WatchPort: %w", err)
	}
	fmt.Println("InboundServerPolicies.WatchPort", len(server.GetAuthorizations()))
	return nil
}

// Taps the proxy, sends a request through it, and sees that request from its head to its end.
func observe(ctx context.Context, addr, url string) error {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	everything := &tap.ObserveRequest_Match{Match: &tap.ObserveRequest_Match_All{All: &tap.ObserveRequest_Match_Seq{}}}
	events, err := tap.NewTapClient(conn).Observe(ctx, &tap.ObserveRequest{Limit: 1, Match: everything})
	if err != nil {
		return fmt.Errorf("Tap.Observe: %w", err)
	}
	// The answer's head says that the tap stands.
	if _, err := events.Header(); err != nil {
		return fmt.Errorf("Tap.Observe: %w", err)
	}
	answer, err := http.Get(url)
	if err != nil {
		return err
	}
	answer.Body.Close()
	var seen []string
	for len(seen) < 3 {
		event, err := events.Recv()
		if err != nil {
			return fmt.Errorf("Tap.Observe: %w after %v", err, seen)
		}
		switch http := event.GetHttp(); {
		case http.GetRequestInit() != nil:
			seen = append(seen, http.GetRequestInit().GetPath())
		case http.GetResponseInit() != nil:
			seen = append(seen, fmt.Sprint(http.GetResponseInit().GetHttpStatus()))
		case http.GetResponseEnd() != nil:
			seen = append(seen, "end")
		}
	}
	fmt.Println("Tap.Observe", seen)
	return nil
}
