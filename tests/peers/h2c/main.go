// Command h2c answers HTTP/2 with prior knowledge and nothing else: the backend behind which h2spec tests a proxy.
// It is net/http, so that no line of the protocol is ours.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
)

func main() {
	listen := flag.String("listen", ":8080", "address")
	flag.Parse()
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			return
		}
		fmt.Fprintf(w, "%s %s %d\n", r.Method, r.URL.Path, n)
	})
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{Handler: handler, Protocols: protocols}
	log.Fatal(server.Serve(strict{listener}))
}

// strict closes a connection that does not begin with the preface of HTTP/2 in good order. net/http alone leaves
// bytes unread and so resets it, which a proxy passes on and h2spec does not take for closed.
type strict struct{ net.Listener }

func (s strict) Accept() (net.Conn, error) {
	conn, err := s.Listener.Accept()
	return &prefaced{Conn: conn, reader: bufio.NewReader(conn)}, err
}

type prefaced struct {
	net.Conn
	reader  *bufio.Reader
	checked bool
}

func (c *prefaced) Read(p []byte) (int, error) {
	if !c.checked {
		c.checked = true
		const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
		if first, err := c.reader.Peek(len(preface)); err != nil || string(first) != preface {
			return 0, io.EOF
		}
	}
	return c.reader.Read(p)
}
