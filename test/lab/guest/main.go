// Command guest is the first process of the lab's virtual machines, and, on the host,
// the program that has it run others:
//
//	guest ADDRESS PROGRAM [ARGUMENT]...
//
// runs one in the machine that listens there, with standard input and the environment
// of this process, and ends as that one does. SIGTERM is passed on; a program whose
// connection ends is killed.
//
//	guest echo ADDRESS
//
// sends the datagrams that come in there back.
package main

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

// request is the first thing on a connection; signals may follow.
type request struct {
	Args, Env []string
	Stdin     []byte
}

// event is what comes back: output, until the program has ended.
type event struct {
	Output []byte
	Ended  bool
	Code   int
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("guest: ")
	if os.Getpid() == 1 {
		log.Fatal(boot())
	}
	if len(os.Args) < 3 {
		log.Fatal("usage: guest ADDRESS PROGRAM [ARGUMENT]...")
	}
	if os.Args[1] == "echo" {
		log.Fatal(echo(os.Args[2]))
	}
	code, err := remote(os.Args[1], os.Args[2:])
	if err != nil {
		log.Fatal(err)
	}
	os.Exit(code)
}

func echo(address string) error {
	c, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	fmt.Println("echo on", c.LocalAddr())
	for b := make([]byte, 64); ; {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return err
		}
		_, _ = c.WriteTo(b[:n], from) // what is not sent is a loss, for the other side to count
	}
}

// remote is the host's side.
func remote(address string, args []string) (int, error) {
	stdin, err := io.ReadAll(os.Stdin)
	if err != nil {
		return 0, err
	}
	c, err := net.Dial("tcp", address)
	if err != nil {
		return 0, err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	out, in := gob.NewEncoder(c), gob.NewDecoder(c)
	if err := out.Encode(request{args, os.Environ(), stdin}); err != nil {
		return 0, err
	}
	go func() {
		for range signals {
			_ = out.Encode(syscall.SIGTERM) // without a connection, the program has been killed
		}
	}()
	for {
		var e event
		if err := in.Decode(&e); err != nil {
			return 0, fmt.Errorf("%s: the machine is gone: %w", args[0], err)
		}
		if e.Ended {
			return e.Code, nil
		}
		if _, err := os.Stdout.Write(e.Output); err != nil {
			return 0, err
		}
	}
}

// serve runs what connections ask for, in the machine.
func serve(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer func() { _ = c.Close() }()
			if err := run(c); err != nil {
				log.Print(err)
			}
		}()
	}
}

func run(c net.Conn) error {
	in, out := gob.NewDecoder(c), gob.NewEncoder(c)
	var r request
	if err := in.Decode(&r); err != nil {
		return err
	}
	// A pipe of our own: what a daemon leaves behind may keep its output open.
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = read.Close() }()
	stdin, err := os.CreateTemp("", "stdin")
	if err != nil {
		return err
	}
	defer func() { _ = errors.Join(stdin.Close(), os.Remove(stdin.Name())) }()
	if _, err := stdin.WriteAt(r.Stdin, 0); err != nil {
		return err
	}
	cmd := exec.Command("ip", append([]string{"netns", "exec", namespace}, r.Args...)...)
	cmd.Env = append(r.Env, path)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, write, write
	if err := cmd.Start(); err != nil {
		return err
	}
	_ = write.Close()
	go func() {
		for {
			var s syscall.Signal
			if in.Decode(&s) != nil {
				_ = cmd.Process.Kill()
				return
			}
			_ = cmd.Process.Signal(s)
		}
	}()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		for b := make([]byte, 32<<10); ; {
			n, err := read.Read(b)
			if n > 0 && out.Encode(event{Output: b[:n]}) != nil || err != nil {
				return
			}
		}
	}()
	_ = cmd.Wait() // how it ended is in ProcessState
	_ = read.SetReadDeadline(soon())
	<-drained
	code := cmd.ProcessState.ExitCode()
	if code < 0 {
		code = 128 + int(cmd.ProcessState.Sys().(syscall.WaitStatus).Signal())
	}
	return out.Encode(event{Ended: true, Code: code})
}
