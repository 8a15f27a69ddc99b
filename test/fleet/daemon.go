package fleet

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/testudo-ipsec/testudo/test/lab"
)

// Daemon is one of our daemons on a node. It can be stopped, killed and started
// again with the same flags.
type Daemon struct {
	Node *lab.Node

	f       *Fleet
	args    []string
	metrics string
	p       *lab.Process
}

func (f *Fleet) daemon(n *lab.Node, program, metrics string, args, more []string) *Daemon {
	args = append([]string{Program(f.t, program), "--metrics", metrics}, args...)
	return &Daemon{Node: n, f: f, metrics: metrics, args: append(args, more...)}
}

// Start starts it, with further flags for this time only.
func (d *Daemon) Start(more ...string) {
	d.f.t.Helper()
	d.p = d.Node.Start(lab.Command{Args: append(d.args[:len(d.args):len(d.args)], more...)})
}

// StartBooted is Start as after a boot of the machine: the kernel's boot ID is another.
func (d *Daemon) StartBooted() {
	d.f.t.Helper()
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	id := d.Node.WriteFile("boot_id", fmt.Sprintf("%x-%x-%x-%x-%x\n", b[:4], b[4:6], b[6:8], b[8:10], b[10:]))
	script := `mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"`
	d.p = d.Node.Start(lab.Command{Args: append([]string{"unshare", "-m", "sh", "-c", script, id}, d.args...)})
}

// Stop asks it to end, and fails the test when it ends with an error.
func (d *Daemon) Stop() {
	d.f.t.Helper()
	if err := d.p.Stop(); err != nil {
		d.f.t.Errorf("fleet: %s on %s ended with %v after SIGTERM; want no error\n%s", d.args[0], d.Node.Name, err, d.p.Output())
	}
}

// Kill9 ends it as a crash would.
func (d *Daemon) Kill9() {
	d.f.t.Helper()
	d.p.Kill()
}

// Restart is Kill9 and Start.
func (d *Daemon) Restart() {
	d.f.t.Helper()
	d.Kill9()
	d.Start()
}

// Running is nil while it runs.
func (d *Daemon) Running() error { return d.p.Running() }

// Process is the present one.
func (d *Daemon) Process() *lab.Process { return d.p }

// WaitUp waits until its metrics are served: all its sockets are open then.
func (d *Daemon) WaitUp() {
	d.f.t.Helper()
	lab.WaitFor(d.f.t, settleLimit, d.Node.Name+" to serve metrics", func() error {
		if err := d.p.Running(); err != nil {
			d.f.t.Fatalf("%v\n%s", err, d.p.Output())
		}
		_, err := d.scrape()
		return err
	})
}

// Metrics are its metrics, by name and labels as in the text format, such as
// `testudo_worker_packets_total{why="blocked"}`.
func (d *Daemon) Metrics() map[string]float64 {
	d.f.t.Helper()
	m, err := d.scrape()
	d.f.must(err)
	return m
}

// CollectGarbage makes its heap hold what is live and nothing else.
func (d *Daemon) CollectGarbage() {
	d.f.t.Helper()
	r, err := d.get("/debug/pprof/heap?gc=1")
	d.f.must(err)
	_, err = io.Copy(io.Discard, r.Body)
	d.f.must(errors.Join(err, r.Body.Close()))
}

func (d *Daemon) get(path string) (*http.Response, error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (c net.Conn, err error) {
			err = d.Node.Do(func() error {
				c, err = net.DialTimeout("tcp", d.metrics, time.Second)
				return err
			})
			return c, err
		},
	}}
	r, err := client.Get("http://" + d.metrics + path)
	if err == nil && r.StatusCode != http.StatusOK {
		_ = r.Body.Close()
		return nil, fmt.Errorf("%s: %s", path, r.Status)
	}
	return r, err
}

func (d *Daemon) scrape() (map[string]float64, error) {
	r, err := d.get("/metrics")
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Body.Close() }()
	out := map[string]float64{}
	for in := bufio.NewScanner(r.Body); in.Scan(); {
		line := in.Text()
		i := strings.LastIndexByte(line, ' ')
		if strings.HasPrefix(line, "#") || i < 0 {
			continue
		}
		if v, err := strconv.ParseFloat(line[i+1:], 64); err == nil {
			out[line[:i]] = v
		}
	}
	return out, nil
}
