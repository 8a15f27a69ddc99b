package lab

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// StrongSwan is Debian's charon-systemd on a node, the peer to interoperate with.
//
// On a machine it has the kernel's ESP and AH. Elsewhere its plugin kernel-libipsec does ESP in user space over the TUN device ipsec0, so
// no kernel ESP is needed. That plugin knows tunnel mode in UDP only, has no ESN and
// raises no acquires (so no start_action = trap): each connection has `encap = yes`,
// and the rest is refused here or cannot be asked for.
type StrongSwan struct {
	*Process

	node *Node
	uri  string
}

// SwanConn is one connection of strongSwan with one CHILD SA, both of this Name.
type SwanConn struct {
	Name          string
	Version       int // 1 or 2; 0 for 2
	Local, Remote netip.Addr
	LocalID       string
	RemoteID      string
	PSK           ipsec.Secret
	Cert          *Cert    // authenticate with it instead of the PSK
	CAs           []*CA    // accept a certificate of these from the peer, instead of the PSK
	CRLs          []string // in PEM
	LocalAuth     string   // what it is called in swanctl.conf; "" for pubkey or psk
	RemoteAuth    string
	PPKID         string // a postquantum preshared key, and its identifier
	PPK           ipsec.Secret
	LocalTS       []netip.Prefix
	RemoteTS      []netip.Prefix
	IKEProposals  []string // as in aes256gcm16-prfsha256-x25519; none for strongSwan's default
	ESPProposals  []string // as in aes128gcm16-x25519, with a key exchange for PFS
	AHProposals   []string // as in sha256, instead of ESP; on a machine only
	Mode          ipsec.Mode
	DPD           time.Duration // 0 for none
	IKERekey      time.Duration // 0 for strongSwan's default
	ChildRekey    time.Duration
	Start         bool // initiate when loaded; otherwise wait for the peer, or for Initiate
	Aggressive    bool // IKEv1 only

	// Further lines of the connection and of its CHILD SA in swanctl.conf, such as
	// "mobike = yes". A setting written here wins over a field and is not checked.
	Settings, ChildSettings []string
	RemoteSettings          []string // of its remote section, such as "revocation = strict"
	// More CHILD SAs, which differ from the first in their name and selectors only.
	More []SwanSelectors
}

// SwanSelectors is the name and the selectors of a further CHILD SA.
type SwanSelectors struct {
	Name              string
	LocalTS, RemoteTS []netip.Prefix
}

// SwanOptions changes how charon runs.
type SwanOptions struct {
	// Charon is further lines of strongswan.conf, such as "cookie_threshold = 0". A
	// setting written here wins over the lab's.
	Charon []string
	// ProtectsItself lets selectors hold charon's own address and its peer's, as
	// between two hosts: its packets of IKE and ESP then bypass the tunnel by a mark.
	ProtectsItself bool
}

// swanMark is on the packets that charon itself sends when ProtectsItself.
var swanMark = []string{
	"plugins { kernel-netlink { fwmark = !0x42 } socket-default { fwmark = 0x42 } }",
}

// charonOptions is strongswan.conf. The order of load matters: the first plugin
// that can do IPsec in a kernel gets to.
const charonOptions = `charon-systemd {
	load = random nonce openssl aes sha1 sha2 md5 gmp curve25519 hmac kdf xcbc cmac gcm ccm ctr chapoly pem pkcs1 pkcs8 x509 pubkey revocation constraints %s kernel-netlink socket-default vici updown counters
	install_routes = yes
	retransmit_timeout = 1
	retransmit_tries = 4
	retransmit_base = 1.5
	plugins {
		vici {
			socket = %s
		}
		kernel-libipsec {
			allow_peer_ts = yes
		}
		kernel-netlink {
			mtu = %d
		}
	}
	filelog {
		stderr {
			default = 1
			ike = 2
			cfg = 2
			knl = 2
			esp = 1
			flush_line = yes
			time_format = %%H:%%M:%%S
		}
	}
	%s
}
`

// StartStrongSwan runs charon on the node and loads the connections. They start
// nothing unless their Start is set.
func (n *Node) StartStrongSwan(conns ...SwanConn) *StrongSwan {
	n.lab.t.Helper()
	return n.StartStrongSwanWith(SwanOptions{}, conns...)
}

// StartStrongSwanWith is StartStrongSwan with options.
func (n *Node) StartStrongSwanWith(o SwanOptions, conns ...SwanConn) *StrongSwan {
	t := n.lab.t
	t.Helper()
	if _, err := exec.LookPath("swanctl"); err != nil {
		t.Fatalf("lab: %v; `make deps` installs strongSwan", err)
	}
	s := &StrongSwan{node: n, uri: "unix://" + n.dir + "/charon.vici"}
	if o.ProtectsItself && n.machine == nil {
		o.Charon = append(o.Charon[:len(o.Charon):len(o.Charon)], swanMark...)
	}
	libipsec, mtu := "kernel-libipsec", swanMTU
	if n.machine != nil {
		libipsec, mtu = "", 0
	}
	conf := n.WriteFile("strongswan.conf", fmt.Sprintf(charonOptions, libipsec, s.uri, mtu, strings.Join(o.Charon, "\n\t")))
	s.Process = n.Start(Command{
		Args: []string{"charon-systemd"},
		Env:  []string{"STRONGSWAN_CONF=" + conf},
	})
	WaitFor(t, 60*time.Second, "charon to answer on its vici socket", func() error {
		if err := s.Running(); err != nil {
			t.Fatal("lab:", err)
		}
		_, err := s.try("--stats")
		return err
	})
	s.Load(conns...)
	return s
}

// swanMTU is the MTU of routes into the tunnel: ESP in UDP over IPv6 with the
// largest padding and ICV still fits a wire of 1500.
const swanMTU = 1400

// Load replaces the connections and secrets that charon knows.
func (s *StrongSwan) Load(conns ...SwanConn) {
	s.node.lab.t.Helper()
	var b strings.Builder
	b.WriteString("connections {\n")
	for _, c := range conns {
		s.node.lab.must(c.check(s.node.machine != nil))
		s.writeCerts(c)
		c.writeConnection(&b, s.node.machine != nil)
	}
	b.WriteString("}\nsecrets {\n")
	for _, c := range conns {
		if !c.PPK.IsZero() {
			fmt.Fprintf(&b, "\tppk-%s {\n\t\tid = %s\n\t\tsecret = 0x%x\n\t}\n", c.Name, c.PPKID, c.PPK.Reveal())
		}
		if c.PSK.IsZero() {
			continue
		}
		// Hexadecimal, so that any octets may be in a secret.
		fmt.Fprintf(&b, "\tike-%s {\n\t\tid-1 = %s\n\t\tid-2 = %s\n\t\tsecret = 0x%x\n\t}\n", c.Name, c.LocalID, c.RemoteID, c.PSK.Reveal())
	}
	b.WriteString("}\n")
	file := s.node.WriteFile("swanctl.conf", b.String())
	s.swanctl("--load-creds", "--clear", "--noprompt", "--file", file)
	s.swanctl("--load-conns", "--file", file)
}

func (c SwanConn) check(kernel bool) error {
	switch {
	case c.Name == "" || strings.ContainsAny(c.Name, " .{}=#\n"):
		return fmt.Errorf("strongSwan connection %q: want a plain name", c.Name)
	case c.Mode == ipsec.ModeTransport && !kernel:
		return fmt.Errorf("strongSwan connection %s: transport mode: kernel-libipsec does tunnel mode only", c.Name)
	case c.PSK.IsZero() && (c.Cert == nil || c.CAs == nil):
		return fmt.Errorf("strongSwan connection %s: no PSK, and no certificate for both sides", c.Name)
	case c.Aggressive && c.Version != 1:
		return fmt.Errorf("strongSwan connection %s: aggressive mode is IKEv1's", c.Name)
	case c.AHProposals != nil && !kernel:
		return fmt.Errorf("strongSwan connection %s: AH proposals %q: kernel-libipsec has no AH", c.Name, c.AHProposals)
	case slices.ContainsFunc(c.ESPProposals, wantsESN) && !kernel:
		return fmt.Errorf("strongSwan connection %s: ESP proposals %q: kernel-libipsec has no ESN", c.Name, c.ESPProposals)
	}
	return nil
}

func wantsESN(proposal string) bool {
	return slices.Contains(strings.Split(proposal, "-"), "esn")
}

func (c SwanConn) writeConnection(b *strings.Builder, kernel bool) {
	set := func(depth int, key, value string) {
		if value != "" {
			fmt.Fprintf(b, "%s%s = %s\n", strings.Repeat("\t", depth), key, value)
		}
	}
	fmt.Fprintf(b, "\t%s {\n", c.Name)
	set(2, "version", fmt.Sprint(cmp.Or(c.Version, 2)))
	set(2, "local_addrs", addr(c.Local))
	set(2, "remote_addrs", addr(c.Remote))
	set(2, "proposals", strings.Join(c.IKEProposals, ","))
	if !kernel {
		set(2, "encap", "yes")
	}
	set(2, "mobike", "no")
	set(2, "rekey_time", seconds(c.IKERekey))
	set(2, "dpd_delay", seconds(c.DPD))
	if c.Aggressive {
		set(2, "aggressive", "yes")
	}
	for _, line := range c.Settings {
		fmt.Fprintf(b, "\t\t%s\n", line)
	}
	set(2, "ppk_id", c.PPKID)
	b.WriteString("\t\tlocal {\n")
	if c.Cert != nil {
		set(3, "certs", c.certFile())
	}
	set(3, "auth", cmp.Or(c.LocalAuth, authOf(c.Cert != nil)))
	set(3, "id", c.LocalID)
	b.WriteString("\t\t}\n\t\tremote {\n")
	set(3, "auth", cmp.Or(c.RemoteAuth, authOf(c.CAs != nil)))
	set(3, "id", c.RemoteID)
	for _, line := range c.RemoteSettings {
		fmt.Fprintf(b, "\t\t\t%s\n", line)
	}
	b.WriteString("\t\t}\n\t\tchildren {\n")
	for _, ts := range append([]SwanSelectors{{c.Name, c.LocalTS, c.RemoteTS}}, c.More...) {
		fmt.Fprintf(b, "\t\t\t%s {\n", ts.Name)
		if c.Mode == ipsec.ModeTransport {
			set(4, "mode", "transport")
		}
		set(4, "local_ts", prefixes(ts.LocalTS))
		set(4, "remote_ts", prefixes(ts.RemoteTS))
		set(4, "esp_proposals", strings.Join(c.ESPProposals, ","))
		set(4, "ah_proposals", strings.Join(c.AHProposals, ","))
		set(4, "rekey_time", seconds(c.ChildRekey))
		if c.Start {
			set(4, "start_action", "start")
		}
		for _, line := range c.ChildSettings {
			fmt.Fprintf(b, "\t\t\t\t%s\n", line)
		}
		b.WriteString("\t\t\t}\n")
	}
	b.WriteString("\t\t}\n\t}\n")
}

func addr(a netip.Addr) string {
	if !a.IsValid() {
		return "%any"
	}
	return a.String()
}

func prefixes(ps []netip.Prefix) string {
	var out []string
	for _, p := range ps {
		out = append(out, p.String())
	}
	return strings.Join(out, ",")
}

func seconds(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return fmt.Sprintf("%ds", max(1, int(d.Seconds())))
}

// patience is how long swanctl waits for what it initiates, in seconds: a machine with an
// emulated processor may have to load an algorithm first.
func (s *StrongSwan) patience() string {
	if s.node.machine != nil {
		return "120"
	}
	return "20"
}

// Initiate negotiates a connection and its CHILD SA; an error says what charon
// said of it.
func (s *StrongSwan) Initiate(name string) error {
	_, err := s.try("--initiate", "--ike", name, "--child", name, "--timeout", s.patience())
	return err
}

// InitiateChild negotiates one of several CHILD SAs of a connection.
func (s *StrongSwan) InitiateChild(name, child string) error {
	_, err := s.try("--initiate", "--ike", name, "--child", child, "--timeout", s.patience())
	return err
}

// TerminateChild deletes a CHILD SA; the IKE SA stays.
func (s *StrongSwan) TerminateChild(name string) error {
	_, err := s.try("--terminate", "--child", name, "--timeout", "10")
	return err
}

// Terminate deletes the IKE SAs of a connection, and their CHILD SAs with them.
func (s *StrongSwan) Terminate(name string) error {
	_, err := s.try("--terminate", "--ike", name, "--timeout", "10")
	return err
}

// RekeyIKE and RekeyChild start a rekey; the new SA shows in SAs later.
func (s *StrongSwan) RekeyIKE(name string) error {
	_, err := s.try("--rekey", "--ike", name)
	return err
}

// Reauthenticate replaces the IKE SA and its CHILD SAs by new ones.
func (s *StrongSwan) Reauthenticate(name string) error {
	_, err := s.try("--rekey", "--ike", name, "--reauth")
	return err
}

// RekeyChild starts a rekey of the CHILD SA.
func (s *StrongSwan) RekeyChild(name string) error {
	_, err := s.try("--rekey", "--child", name)
	return err
}

// SAs lists the IKE SAs charon has.
func (s *StrongSwan) SAs() []SwanSA {
	s.node.lab.t.Helper()
	sas, err := parseSAs(s.swanctl("--list-sas", "--pretty"))
	s.node.lab.must(err)
	return sas
}

// errNotEstablished is what WaitEstablished waits to see the end of.
var errNotEstablished = errors.New("no established IKE SA with an installed CHILD SA")

// WaitEstablished waits for an IKE SA of a connection with an installed CHILD SA
// and returns it.
func (s *StrongSwan) WaitEstablished(name string, limit time.Duration) SwanSA {
	t := s.node.lab.t
	t.Helper()
	var found SwanSA
	WaitFor(t, limit, "strongSwan's connection "+name, func() error {
		sas := s.SAs()
		for _, sa := range sas {
			if sa.Name == name && sa.State == "ESTABLISHED" && sa.Child("INSTALLED") != nil {
				found = sa
				return nil
			}
		}
		return fmt.Errorf("%w; it has %+v", errNotEstablished, sas)
	})
	return found
}

func (s *StrongSwan) try(args ...string) (string, error) {
	return s.node.Try(append([]string{"env", "STRONGSWAN_CONF=" + s.node.dir + "/strongswan.conf", "SWANCTL_DIR=" + s.node.dir, "swanctl", args[0], "--uri", s.uri}, args[1:]...)...)
}

func (s *StrongSwan) swanctl(args ...string) string {
	s.node.lab.t.Helper()
	out, err := s.try(args...)
	s.node.lab.must(err)
	return out
}
