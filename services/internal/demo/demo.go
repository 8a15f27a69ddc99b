// Package demo shows the whole system on one machine: policyd, keymgrd and two
// hosts with a wire between them, in namespaces of their own.
package demo

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Options of the demo.
type Options struct {
	Megabytes int  // of TCP each way
	Keep      bool // leave it running until interrupted
	Out       io.Writer
}

// demo is one run.
type demo struct {
	Options
	dir  string
	bin  string
	logs []string
	cmds []*exec.Cmd
}

// Run shows it. It returns nil only when every packet between the hosts was
// protected and all data arrived unchanged.
func Run(ctx context.Context, o Options) error {
	if os.Getenv(inside) == "" {
		return enter(ctx)
	}
	if err := prepare(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "testudo-demo-")
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	d := &demo{Options: o, dir: dir, bin: filepath.Dir(self)}
	defer os.RemoveAll(dir)
	defer d.stop()
	if err := d.run(ctx); err != nil {
		for _, h := range hosts {
			_ = d.testudo(context.WithoutCancel(ctx), "worker", "status", "--admin", d.socket("workerd-"+h.name))
		}
		d.printLogs()
		return err
	}
	return nil
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.Out, "\n== "+format+"\n", args...) }

const policy = `apiVersion: testudo/v1
kind: Node
metadata: {name: red}
spec: {addresses: [10.77.0.1, "fd77::1"]}
---
apiVersion: testudo/v1
kind: Node
metadata: {name: blue}
spec: {addresses: [10.77.0.2, "fd77::2"]}
---
apiVersion: testudo/v1
kind: FilterList
metadata: {name: between-hosts}
spec:
  filters:
  - {from: me, to: {node: red}}
  - {from: me, to: {node: blue}}
---
apiVersion: testudo/v1
kind: FilterAction
metadata: {name: require}
spec: {action: secure, mode: transport, security: [{esp: {encryption: aes128gcm16}}]}
---
apiVersion: testudo/v1
kind: Authentication
metadata: {name: demo}
spec: {methods: [{psk: {secret: "file:demo.psk"}}]}
---
apiVersion: testudo/v1
kind: Policy
metadata: {name: demo}
spec:
  rules:
  - {name: all, filters: between-hosts, action: require, authentication: demo}
---
apiVersion: testudo/v1
kind: Assignment
metadata: {name: red}
spec: {policy: demo, to: red}
---
apiVersion: testudo/v1
kind: Assignment
metadata: {name: blue}
spec: {policy: demo, to: blue}
`

func (d *demo) run(ctx context.Context) error {
	d.say("two hosts with a wire between them")
	if err := network(ctx); err != nil {
		return err
	}
	fmt.Fprintln(d.Out, "red 10.77.0.1 fd77::1 ──── wire ──── 10.77.0.2 fd77::2 blue")
	tap, err := watch("wire-red")
	if err != nil {
		return err
	}
	watching := make(chan struct{})
	tap.run(watching)

	d.say("policyd and keymgrd on this machine, workerd on each host")
	if err := d.daemons(ctx); err != nil {
		return err
	}
	d.say("a policy: all traffic between the hosts must be protected")
	if err := d.file("policy.yaml", policy); err != nil {
		return err
	}
	if err := d.testudo(ctx, "policy", "apply", "-f", "policy.yaml"); err != nil {
		return err
	}
	if err := d.settled(ctx); err != nil {
		return err
	}
	if err := d.testudo(ctx, "status"); err != nil {
		return err
	}

	d.say("the first packet makes the key manager negotiate; it waits, and then goes")
	handshake, err := d.ping(ctx)
	if err != nil {
		return err
	}
	d.say("%d MB of TCP each way", d.Megabytes)
	var mbps float64
	for i := range hosts {
		m, err := d.transfer(ctx, i, 1-i)
		if err != nil {
			return err
		}
		mbps += m / 2
	}
	d.say("what an operator sees")
	for _, args := range [][]string{{"sa", "list", "--node", "red"}, {"explain", "10.77.0.1", "10.77.0.2", "tcp", "5001"}} {
		if err := d.testudo(ctx, args...); err != nil {
			return err
		}
	}
	if d.Keep {
		d.say("running until interrupted; the sockets are in %s/run, the hosts are namespaces of process %d", d.dir, os.Getpid())
		<-ctx.Done()
	}
	close(watching)
	tap.wg.Wait()
	d.say("what passed on the wire: %d ESP packets, %d IKE messages, %d in clear", tap.ESP.Load(), tap.IKE.Load(), tap.Clear.Load())
	if tap.Clear.Load() != 0 {
		return fmt.Errorf("%d packets went in clear; %s", tap.Clear.Load(), tap.firstClear())
	}
	if tap.ESP.Load() == 0 {
		return errors.New("no ESP packet was seen on the wire")
	}
	fmt.Fprintf(d.Out, "\ndemo: ok esp_packets=%d cleartext_packets=%d throughput_mbps=%.0f handshake_ms=%.1f\n", tap.ESP.Load(), tap.Clear.Load(), mbps, handshake)
	return nil
}

func (d *demo) file(name, content string) error {
	return os.WriteFile(filepath.Join(d.dir, name), []byte(content), 0o600)
}

func (d *demo) socket(name string) string {
	return "unix://" + filepath.Join(d.dir, "run", name+".sock")
}

// daemons starts all of them. None is told anything but where the others are.
func (d *demo) daemons(ctx context.Context) error {
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(d.dir, "secrets"), 0o700); err != nil {
		return err
	}
	if err := d.file("secrets/demo.psk", hex.EncodeToString(key)+"\n"); err != nil {
		return err
	}
	if err := d.start("policyd", "", "policyd", "--listen", d.socket("policyd"), "--data", filepath.Join(d.dir, "policyd"), "--metrics", ""); err != nil {
		return err
	}
	if err := d.answers(ctx, d.socket("policyd")); err != nil {
		return err
	}
	if err := d.start("keymgrd", "", "keymgrd", "--listen", d.socket("keymgrd"), "--policyd", d.socket("policyd"), "--secrets.dir", filepath.Join(d.dir, "secrets"), "--state.dir", filepath.Join(d.dir, "keymgrd"), "--metrics", ""); err != nil {
		return err
	}
	for _, h := range hosts {
		state := filepath.Join(d.dir, h.name)
		if err := os.MkdirAll(state, 0o700); err != nil {
			return err
		}
		if err := d.start("workerd-"+h.name, h.name, "workerd", "--node", h.name, "--policyd", d.socket("policyd"), "--keymgrd", d.socket("keymgrd"),
			"--admin", d.socket("workerd-"+h.name), "--state", state, "--metrics", ""); err != nil {
			return err
		}
	}
	return nil
}

// answers waits until a daemon accepts connections.
func (d *demo) answers(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := net.Dial("unix", strings.TrimPrefix(socket, "unix://"))
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w", socket, err)
		case <-tick.C:
		}
	}
}

// start starts a daemon, in a host's namespace when netns is set.
func (d *demo) start(name, netns string, args ...string) error {
	args[0] = filepath.Join(d.bin, args[0])
	if _, err := os.Stat(args[0]); err != nil {
		return fmt.Errorf("%w; build all four programs into one folder with `make build`", err)
	}
	if netns != "" {
		args = append([]string{"ip", "netns", "exec", netns}, args...)
	}
	log := filepath.Join(d.dir, name+".log")
	f, err := os.Create(log)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return err
	}
	d.cmds = append(d.cmds, cmd)
	d.logs = append(d.logs, log)
	return nil
}

// stop ends what was started, the last first.
func (d *demo) stop() {
	for i := len(d.cmds) - 1; i >= 0; i-- {
		c := d.cmds[i]
		_ = c.Process.Signal(syscall.SIGTERM)
		t := time.AfterFunc(5*time.Second, func() { _ = c.Process.Kill() })
		_ = c.Wait()
		t.Stop()
	}
}

func (d *demo) printLogs() {
	for _, l := range d.logs {
		b, err := os.ReadFile(l)
		if err != nil || len(b) == 0 {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		fmt.Fprintf(d.Out, "\n-- the end of %s\n%s\n", filepath.Base(l), strings.Join(lines[max(0, len(lines)-15):], "\n"))
	}
}

func (d *demo) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(d.bin, "testudo"), append(args, "--policyd", d.socket("policyd"), "--keymgrd", d.socket("keymgrd"))...)
	cmd.Dir = d.dir
	return cmd
}

// testudo runs the operator's command and shows it.
func (d *demo) testudo(ctx context.Context, args ...string) error {
	fmt.Fprintf(d.Out, "$ testudo %s\n", strings.Join(args, " "))
	var stderr bytes.Buffer
	cmd := d.command(ctx, args...)
	cmd.Stdout, cmd.Stderr = d.Out, io.MultiWriter(d.Out, &stderr)
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("testudo %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// settled waits until both workers enforce the policy and are attached.
func (d *demo) settled(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var last string
	for {
		var st struct {
			Managers []struct {
				InSync bool `json:"inSync"`
			} `json:"keyManagers"`
			Nodes []struct {
				InSync   bool `json:"policyInSync"`
				KeymgrUp bool `json:"keymgrConnected"`
			} `json:"nodes"`
		}
		out, err := d.command(ctx, "status", "-o", "json").Output()
		if err == nil && json.Unmarshal(out, &st) == nil {
			last = string(out)
			ready := len(st.Nodes) == len(hosts) && len(st.Managers) == 1 && st.Managers[0].InSync
			for _, n := range st.Nodes {
				ready = ready && n.KeymgrUp && n.InSync
			}
			if ready {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the hosts did not take the policy in time; last status: %s", last)
		case <-tick.C:
		}
	}
}

var pingTime = regexp.MustCompile(`icmp_seq=1 .*time=([0-9.]+) ms`)

// ping sends three echo requests over each family, and returns how long the
// very first answer took, the negotiation included, in milliseconds.
func (d *demo) ping(ctx context.Context) (float64, error) {
	var first float64
	for i, to := range []string{hosts[1].v4, hosts[1].v6} {
		out, err := run(ctx, "ip", "netns", "exec", hosts[0].name, "ping", "-c", "3", "-i", "0.2", "-W", "5", to)
		fmt.Fprint(d.Out, "red$ ping "+to+"\n"+out)
		if err != nil {
			return 0, err
		}
		m := pingTime.FindStringSubmatch(out)
		if m == nil {
			return 0, fmt.Errorf("the first packet to %s got no answer", to)
		}
		if i == 0 {
			first, _ = strconv.ParseFloat(m[1], 64)
		}
	}
	return first, nil
}

// transfer sends from one host to the other and checks what arrived.
func (d *demo) transfer(ctx context.Context, from, to int) (mbps float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	addr := hosts[to].v4 + ":5001"
	in := func(host string, args ...string) *exec.Cmd {
		return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", host, filepath.Join(d.bin, "testudo"), "demo"}, args...)...)
	}
	recv := in(hosts[to].name, "receive", addr)
	recv.Stderr = d.Out
	pipe, err := recv.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := recv.Start(); err != nil {
		return 0, err
	}
	defer func() { cancel(); _ = recv.Wait() }()
	lines := bufio.NewScanner(pipe)
	if !lines.Scan() {
		return 0, errors.New("the receiver did not start")
	}
	out, err := in(hosts[from].name, "send", addr, strconv.Itoa(d.Megabytes)).Output()
	if err != nil {
		return 0, fmt.Errorf("send from %s to %s: %w", hosts[from].name, hosts[to].name, err)
	}
	var sent, got result
	if err := json.Unmarshal(out, &sent); err != nil {
		return 0, err
	}
	if !lines.Scan() {
		return 0, errors.New("the receiver said nothing")
	}
	if err := json.Unmarshal(lines.Bytes(), &got); err != nil {
		return 0, err
	}
	if sent.Bytes != got.Bytes || sent.SHA256 != got.SHA256 {
		return 0, fmt.Errorf("%s sent %d bytes, %s got %d, or they were changed", hosts[from].name, sent.Bytes, hosts[to].name, got.Bytes)
	}
	fmt.Fprintf(d.Out, "%s -> %s: %d MB in order and unchanged, %.0f Mbit/s\n", hosts[from].name, hosts[to].name, d.Megabytes, sent.Mbps)
	return sent.Mbps, nil
}
