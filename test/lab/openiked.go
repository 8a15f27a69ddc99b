package lab

import (
	"fmt"
	"net/netip"
	"path"
)

// OpenIKED is Debian's iked on a machine, whose kernel does its ESP.
type OpenIKED struct {
	*Process
	node *Node
}

// IKEDConn is the one connection of an iked.
type IKEDConn struct {
	Active            bool   // it starts, otherwise the peer does
	Mode              string // tunnel or transport
	Local, Remote     netip.Addr
	LocalID, RemoteID string
	LocalTS, RemoteTS netip.Prefix
	IKE, Child        string // transforms, as in iked.conf(5)
	Lifetime          string // of its CHILD SAs; it rekeys before
	PSK               string // empty for certificates:
	Cert              Cert
	CA                *CA
}

// StartOpenIKED runs iked on a machine.
func (n *Node) StartOpenIKED(c IKEDConn) *OpenIKED {
	n.lab.t.Helper()
	if n.machine == nil {
		n.lab.t.Fatalf("lab: OpenIKED on %s: it wants a kernel with ESP, so a machine", n.Name)
	}
	how := "passive"
	if c.Active {
		how = "active"
	}
	auth := "rfc7427"
	if c.PSK != "" {
		auth = fmt.Sprintf("psk %q", c.PSK)
		c.CA = NewCA(n.lab.t, "unused") // it does not start without
		c.Cert = c.CA.Issue("p256", c.LocalID)
	}
	for name, content := range map[string]string{
		"private/local.key": c.Cert.Key, "certs/local.crt": c.Cert.Chain, "ca/ca.crt": c.CA.PEM(),
	} {
		// Not root reads them, but user _iked.
		n.lab.must(n.send(path.Join("/etc/iked", name), content, "022"))
	}
	conf := n.WriteFile("iked.conf", fmt.Sprintf(`set nomobike
ikev2 "lab" %s %s esp from %s to %s local %s peer %s ikesa %s childsa %s srcid %s dstid %s lifetime %s %s
`, how, c.Mode, c.LocalTS, c.RemoteTS, c.Local, c.Remote, c.IKE, c.Child, c.LocalID, c.RemoteID, c.Lifetime, auth))
	o := &OpenIKED{node: n, Process: n.Start(Command{Args: []string{"iked", "-dvv", "-f", conf}})}
	o.WaitOutput("config_getstatic: nattport", machineLimit) // it has its sockets then
	return o
}
