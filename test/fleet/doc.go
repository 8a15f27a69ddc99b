// Package fleet runs our daemons in a lab: one policyd with its embedded etcd, one
// keymgrd, and a workerd on each host, all of them the real programs, driven as an
// operator drives them, by the testudo command.
//
//	p := lab.NewPair(t, lab.PairOptions{})
//	f := fleet.New(t, p.Lab, fleet.Options{Hosts: []*lab.Node{p.A.Node, p.B.Node}})
//	f.Apply(policy)
//	f.WaitInSync()
//	p.A.Node.Ping(p.B.V4.Addr(), lab.PingOptions{})
//	f.SAs("a")
//
// policyd and keymgrd run on a node of their own, called control, which has no link
// to the hosts: they talk over unix sockets. With Options.MutualTLS there is a link
// from each host to control, and they talk over TCP with certificates.
//
// A host is called in policy what it is called in the lab, in small letters.
// The output of every daemon is in the log of a test that fails.
package fleet
