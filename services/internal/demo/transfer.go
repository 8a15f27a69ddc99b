package demo

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"time"
)

// A transfer runs in two processes, each in its host's namespace: `testudo
// demo receive` listens, `testudo demo send` connects. Both hash what they
// handle, so that a byte lost or changed on the way shows.

type result struct {
	Bytes  int64   `json:"bytes"`
	SHA256 string  `json:"sha256"`
	Mbps   float64 `json:"mbps,omitempty"`
}

// Receive takes one connection and prints what came.
func Receive(address string, w io.Writer) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	defer l.Close()
	fmt.Fprintln(w, "listening")
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	h := sha256.New()
	n, err := io.Copy(h, c)
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(result{Bytes: n, SHA256: fmt.Sprintf("%x", h.Sum(nil))})
}

// Send sends megabytes of random octets and prints how fast the network took
// them. The data is made before the clock starts; the clock stops when the
// receiver has closed its end.
func Send(address string, megabytes int, w io.Writer) error {
	block := make([]byte, 1<<20)
	src := rand.NewChaCha8([32]byte{byte(os.Getpid())})
	_, _ = src.Read(block)
	h := sha256.New()
	for range megabytes {
		h.Write(block)
	}
	c, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	start := time.Now()
	for range megabytes {
		if _, err := c.Write(block); err != nil {
			return err
		}
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, c); err != nil {
		return err
	}
	n := int64(megabytes) << 20
	return json.NewEncoder(w).Encode(result{Bytes: n, SHA256: fmt.Sprintf("%x", h.Sum(nil)), Mbps: float64(n) * 8 / time.Since(start).Seconds() / 1e6})
}
