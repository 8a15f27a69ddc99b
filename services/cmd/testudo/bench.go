package main

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/cred"
	"github.com/testudo-ipsec/testudo/keymgr/cred/pki"
	"github.com/testudo-ipsec/testudo/keymgr/cred/static"
	"github.com/testudo-ipsec/testudo/services/internal/ikeload"
)

func (c *cli) benchCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "bench", Short: "Measure a peer"}
	cmd.AddCommand(c.benchIKE())
	return cmd
}

func (c *cli) benchIKE() *cobra.Command {
	o := ikeload.Options{}
	var pskFile, secrets, ike, esp, mode, localTS, remoteTS string
	var from []string
	cmd := &cobra.Command{
		Use:   "ike ADDRESS[:PORT]",
		Short: "Set up many IKE SAs with a responder and tell how fast it was",
		Long: `bench ike is an initiator of IKEv2. It sets up --count IKE
SAs with one CHILD SA each, --concurrency at a time, deletes them again, and
prints set-ups per second, latencies, and why set-ups failed.

What it does to the responder: each set-up costs it a Diffie-Hellman exchange
and an IKE SA with a CHILD SA in its memory and packet path, for as long as they
are held. A responder that is too slow asks for cookies, drops requests, and
others wait. An identity that is also used by a real peer may push that peer's
IKE SA out. So point it only at a responder of your own that may be slowed down,
and give it identities of its own. It talks to ADDRESS and to nobody else, ends
after --time, and sends no protected packet.

It takes part in no policy: the responder must accept --local-id, proven by the
key in --psk-file or by a certificate, and a CHILD SA between each source address and ADDRESS (or
--local-ts and --remote-ts). With %d in --local-id, and in --credential, and several source addresses
(--from, which must be addresses of this host), each address is a peer of its
own, as a fleet would be. Ports are ephemeral, so no privilege is needed.

  testudo bench ike 192.0.2.10 --local-id load.example --remote-id gw.example \
    --psk-file load.psk --count 1000 --concurrency 16
  testudo bench ike 192.0.2.10 --local-id load.example --remote-id gw.example \
    --secrets ./pki --credential file:load --trust file:ca`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if o.To, err = responder(args[0]); err != nil {
				return err
			}
			if pskFile != "" {
				if o.PSK, err = readPSK(pskFile); err != nil {
					return err
				}
				defer o.PSK.Wipe()
			} else {
				files, err := static.Open(secrets)
				if err != nil {
					return err
				}
				defer files.Close()
				log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
				o.Certificates = pki.New(pki.Config{Stores: map[string]pki.Store{cred.SchemeFile: files}, Log: log})
			}
			if o.IKE, err = ipsec.ParseProposal(ipsec.ProtocolIKE, ike); err != nil {
				return fmt.Errorf("--ike: %w", err)
			}
			if o.ESP, err = ipsec.ParseProposal(ipsec.ProtocolESP, esp); err != nil {
				return fmt.Errorf("--esp: %w", err)
			}
			if o.From, err = ikeload.Sources(from); err != nil {
				return fmt.Errorf("--from: %w", err)
			}
			if o.Transport = mode == "transport"; !o.Transport && mode != "tunnel" {
				return fmt.Errorf("--mode: got %q, want tunnel or transport", mode)
			}
			for _, x := range []struct {
				flag, text string
				to         *netip.Prefix
			}{{"--local-ts", localTS, &o.LocalTS}, {"--remote-ts", remoteTS, &o.RemoteTS}} {
				if x.text == "" {
					continue
				}
				if *x.to, err = netip.ParsePrefix(x.text); err != nil {
					return fmt.Errorf("%s: %w", x.flag, err)
				}
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			if o.Hold > 0 {
				o.Settled = func(r ikeload.Report) {
					fmt.Fprintf(cmd.ErrOrStderr(), "%d set up in %.1f s, held for %s\n", r.Succeeded, r.Seconds, o.Hold)
				}
			}
			r, err := ikeload.Run(ctx, o)
			if err != nil {
				return err
			}
			if err := c.print(cmd.OutOrStdout(), r, func(t *table) { printLoad(t, &r) }); err != nil {
				return err
			}
			if r.Succeeded == 0 {
				return fmt.Errorf("no IKE SA came up")
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&pskFile, "psk-file", "", "file with the preshared key, as in keymgrd's secrets directory")
	f.StringVar(&secrets, "secrets", "", "folder with certificates and keys, as keymgrd's secrets directory")
	f.StringVar(&o.Credential, "credential", "", "reference of the key and chain to show, such as file:load for load.pem and load-key.pem")
	f.StringVar(&o.Trust, "trust", "", "reference of the authorities that the responder's certificate may come from, such as file:ca")
	f.StringVar(&o.LocalID, "local-id", "", "identity to show; %d becomes the number of the source address")
	f.StringVar(&o.RemoteID, "remote-id", "", "identity that the responder must show")
	f.StringVar(&ike, "ike", "aes256gcm16-prfsha256-x25519", "IKE suite, see `testudo suites`")
	f.StringVar(&esp, "esp", "aes128gcm16", "ESP suite")
	f.StringVar(&mode, "mode", "tunnel", "tunnel or transport")
	f.StringSliceVar(&from, "from", nil, "source addresses, prefixes or ranges first-last; default: the route's")
	f.StringVar(&localTS, "local-ts", "", "prefix at this end; default: the source address")
	f.StringVar(&remoteTS, "remote-ts", "", "prefix at the responder's end; default: its address")
	f.IntVar(&o.Count, "count", 100, fmt.Sprintf("IKE SAs to set up, at most %d", ikeload.MaxCount))
	f.IntVar(&o.Concurrency, "concurrency", 4, fmt.Sprintf("at a time, at most %d", ikeload.MaxConcurrency))
	f.IntVar(&o.Rate, "rate", 0, "begin so many a second; 0 begins one as soon as another has ended")
	f.DurationVar(&o.Time, "time", time.Minute, "start no more after this long")
	f.DurationVar(&o.Timeout, "timeout", 10*time.Second, "a set-up that takes longer has failed")
	f.DurationVar(&o.Hold, "hold", 0, "keep all of them until this long after the last; 0 deletes each at once")
	for _, name := range []string{"local-id", "remote-id"} {
		_ = cmd.MarkFlagRequired(name)
	}
	cmd.MarkFlagsOneRequired("psk-file", "secrets")
	cmd.MarkFlagsMutuallyExclusive("psk-file", "secrets")
	cmd.MarkFlagsRequiredTogether("secrets", "credential", "trust")
	return cmd
}

const portIKE = 500

// responder reads an address with or without a port.
func responder(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a.Unmap(), portIKE), nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return ap, fmt.Errorf("responder %q: want an address, or address:port", s)
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
}

func readPSK(file string) (ipsec.Secret, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return ipsec.Secret{}, err
	}
	defer clear(b)
	return cred.DecodePSK(file, b)
}

func printLoad(t *table, r *ikeload.Report) {
	t.line("%d of %d IKE SAs with a CHILD SA in %.2f s: %.0f a second", r.Succeeded, r.Count, r.Seconds, r.PerSecond)
	t.line("latency: p50 %.2f ms, p90 %.2f ms, p99 %.2f ms, max %.2f ms", r.P50, r.P90, r.P99, r.Max)
	t.line("datagrams: %d sent, %d received, %d of them ignored", r.Sent, r.Received, r.Ignored)
	if r.Lost > 0 {
		t.line("%d were ended by the responder while they were held", r.Lost)
	}
	if len(r.Failures) > 0 {
		t.row("FAILED", "WHY", "THE FIRST")
		for _, f := range r.Failures {
			t.row(f.Count, f.Why, f.Detail)
		}
	}
}
