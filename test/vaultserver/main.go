package main

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/audit"
	vaulthttp "github.com/hashicorp/vault/http"
	"github.com/hashicorp/vault/internalshared/configutil"
	"github.com/hashicorp/vault/sdk/physical"
	"github.com/hashicorp/vault/sdk/physical/file"
	"github.com/hashicorp/vault/sdk/physical/inmem"
	"github.com/hashicorp/vault/vault"
)

// ready is the first line on standard output.
type ready struct {
	Address   string `json:"address"`
	RootToken string `json:"rootToken"`
	CA        string `json:"ca,omitempty"`
}

// answer is one line on standard output for each line of standard input.
type answer struct {
	State string `json:"state,omitempty"` // sealed, unsealed or stopped
	Error string `json:"error,omitempty"`
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address to listen on")
	data := flag.String("data", "", "folder for storage that outlives the process (default: memory)")
	useTLS := flag.Bool("tls", false, "serve TLS with a certificate made at start")
	level := flag.String("log", "error", "log level on standard error")
	flag.Parse()

	if err := run(*listen, *data, *useTLS, *level); err != nil {
		fmt.Fprintln(os.Stderr, "vaultserver:", err)
		os.Exit(1)
	}
}

func run(listen, data string, useTLS bool, level string) error {
	log := hclog.New(&hclog.LoggerOptions{Name: "vault", Output: os.Stderr, Level: hclog.LevelFromString(level)})
	storage, err := openStorage(data, log)
	if err != nil {
		return err
	}
	core, err := vault.NewCore(&vault.CoreConfig{
		Physical:           storage,
		StorageType:        storageType(data),
		BuiltinRegistry:    builtins{},
		LogicalBackends:    secretsEngines,
		CredentialBackends: authMethods,
		AuditBackends:      map[string]audit.Factory{},
		DisableMlock:       true,
		Logger:             log,
		RollbackPeriod:     time.Minute,
	})
	if err != nil {
		return fmt.Errorf("making the core: %w", err)
	}
	keys, err := openKeys(core, data)
	if err != nil {
		return err
	}
	if err := keys.unseal(core); err != nil {
		return err
	}

	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	r := ready{Address: "http://" + ln.Addr().String(), RootToken: keys.RootToken}
	if useTLS {
		conf, ca, err := selfSigned()
		if err != nil {
			return err
		}
		ln, r.Address, r.CA = tls.NewListener(ln, conf), "https://"+ln.Addr().String(), ca
	}
	server := &http.Server{
		Handler: vaulthttp.Handler.Handler(&vault.HandlerProperties{
			Core: core,
			ListenerConfig: &configutil.Listener{
				Type:               "tcp",
				Address:            ln.Addr().String(),
				MaxRequestDuration: 30 * time.Second,
			},
		}),
		ReadHeaderTimeout: 10 * time.Second,
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()

	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(r); err != nil {
		return err
	}
	commands := make(chan error, 1)
	go func() { commands <- control(os.Stdin, out, core, keys) }()
	select {
	case err = <-served:
		err = fmt.Errorf("serving: %w", err)
	case err = <-commands:
	}
	_ = server.Close()
	if down := core.ShutdownWait(); err == nil {
		err = down
	}
	if err == nil {
		err = out.Encode(answer{State: "stopped"})
	}
	return err
}

// control obeys standard input until stop or its end.
func control(in io.Reader, out *json.Encoder, core *vault.Core, keys unsealKeys) error {
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var a answer
		var err error
		switch cmd := lines.Text(); cmd {
		case "seal":
			a.State, err = "sealed", core.Seal(keys.RootToken)
		case "unseal":
			a.State, err = "unsealed", keys.unseal(core)
		case "stop":
			return nil
		default:
			err = fmt.Errorf("unknown command %q: want seal, unseal or stop", cmd)
		}
		if err != nil {
			a = answer{Error: err.Error()}
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
	return lines.Err()
}

func openStorage(data string, log hclog.Logger) (physical.Backend, error) {
	if data == "" {
		return inmem.NewInmem(nil, log)
	}
	if err := os.MkdirAll(data, 0o700); err != nil {
		return nil, err
	}
	return file.NewFileBackend(map[string]string{"path": data}, log)
}

func storageType(data string) string {
	if data == "" {
		return "inmem"
	}
	return "file"
}
