package main

import (
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/testudo-ipsec/testudo/services/internal/config"
)

type options struct {
	Node       string        `koanf:"node" help:"this node's name in policy; default: the host name"`
	Policyd    string        `koanf:"policyd" help:"address of policyd: unix:///path or host:port"`
	Keymgrd    string        `koanf:"keymgrd" help:"address of keymgrd: unix:///path or host:port"`
	Admin      string        `koanf:"admin" help:"unix socket for operators: unix:///path"`
	State      string        `koanf:"state" help:"folder for the last-known-good policy"`
	Metrics    string        `koanf:"metrics" help:"host:port for /metrics, /healthz and /debug/pprof; empty for none"`
	Device     string        `koanf:"device" help:"name of the TUN device"`
	Report     time.Duration `koanf:"report" help:"time between counter reports to the key manager"`
	Queues     int           `koanf:"queues" help:"queues of the TUN device, each with sockets and goroutines of its own"`
	MTU        int           `koanf:"mtu" help:"MTU of the network below; 0: as its interfaces say"`
	FailClosed bool          `koanf:"fail-closed" help:"whatever policy says: before the first start (with 'workerd block') and after a clean stop too, what policy protects stays blocked until the next start or cleanup; after a crash it always does"`
	TLS        config.TLS    `koanf:"tls"`
	Log        config.Log    `koanf:"log"`
}

func defaults(hostname string) *options {
	return &options{
		Node:    hostname,
		Policyd: "unix:///run/testudo/policyd.sock",
		Keymgrd: "unix:///run/testudo/keymgrd.sock",
		Admin:   "unix:///run/testudo/workerd.sock",
		State:   "/var/lib/testudo/workerd",
		Metrics: "127.0.0.1:7413",
		Device:  "tst0",
		Queues:  1,
		Report:  time.Second,
		Log:     config.DefaultLog,
	}
}

// Logging is where the log options are.
func (o *options) Logging() config.Log { return o.Log }

// device is what the kernel takes as an interface name, and nftables as part
// of a table's.
var device = regexp.MustCompile(`^[a-z][a-z0-9_]{0,14}$`)

// Validate reports every problem.
func (o *options) Validate() error {
	errs := []error{
		o.Log.Validate(), config.ValidateAddress("policyd", o.Policyd), config.ValidateAddress("keymgrd", o.Keymgrd),
		config.ValidateAddress("admin", o.Admin), o.TLS.Validate(o.Policyd, o.Keymgrd),
	}
	if o.Node == "" {
		errs = append(errs, errors.New("node: not set; want the node's name in policy"))
	}
	if !config.IsUnix(o.Admin) {
		errs = append(errs, fmt.Errorf("admin: got %q, want a unix socket: it has no certificates", o.Admin))
	}
	if o.State == "" {
		errs = append(errs, errors.New("state: not set; want a folder, so that policy survives a reboot"))
	}
	if o.Metrics != "" {
		errs = append(errs, config.ValidateTCP("metrics", o.Metrics))
	}
	if !device.MatchString(o.Device) {
		errs = append(errs, fmt.Errorf("device: got %q, want 1 to 15 lower-case letters, digits and _, a letter first", o.Device))
	}
	if o.Report < 100*time.Millisecond || o.Report > time.Minute {
		errs = append(errs, fmt.Errorf("report: got %s, want 100ms to 1m", o.Report))
	}
	if o.Queues < 1 || o.Queues > 255 { // a TUN device has 256, of which one is detached
		errs = append(errs, fmt.Errorf("queues: got %d, want 1 to 255", o.Queues))
	}
	if o.MTU != 0 && (o.MTU < 1280 || o.MTU > 65535) {
		errs = append(errs, fmt.Errorf("mtu: got %d, want 0 or 1280 to 65535", o.MTU))
	}
	return errors.Join(errs...)
}
