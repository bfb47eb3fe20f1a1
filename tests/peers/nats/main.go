// A NATS client: connects, and sends messages to itself. Prints how long the connection took.
package main

import (
	"fmt"
	"log"
	"os"
	"time"

	"github.com/nats-io/nats.go"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: nats HOST:PORT")
	}
	start := time.Now()
	conn, err := nats.Connect("nats://"+os.Args[1], nats.Timeout(20*time.Second), nats.MaxReconnects(0))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	took := time.Since(start)
	if _, err := conn.Subscribe("orders", func(m *nats.Msg) { _ = m.Respond(m.Data) }); err != nil {
		log.Fatal(err)
	}
	for n := range 100 {
		want := fmt.Sprint("order ", n)
		answer, err := conn.Request("orders", []byte(want), 10*time.Second)
		if err != nil || string(answer.Data) != want {
			log.Fatalf("%d: %v %v", n, answer, err)
		}
	}
	fmt.Println(took.Seconds())
}
