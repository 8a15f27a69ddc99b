package interop

func tunnels() []scenario {
	var out []scenario
	for _, at := range []struct {
		topology
		name, shows string
	}{
		{pair, "pair", "tunnel between two hosts"},
		{sites, "sites", "tunnel between two gateways, for their subnets"},
	} {
		for _, v6 := range []bool{false, true} {
			family := "4"
			if v6 {
				family = "6"
			}
			out = append(out, twice(scenario{
				name: "ikev2-psk-tunnel-" + at.name + "-ipv" + family, shows: at.shows + " over IPv" + family,
				at: at.topology, v6: v6, steps: carries,
			})...)
		}
	}
	return out
}

// carries brings the tunnel up and moves traffic both ways.
func carries(b *bed) {
	ours, theirs := b.start()
	b.ping()
	b.transfer(10 << 20)
	if ours.GetVersion() != 2 || ours.GetInitiator() != (b.role == initiator) || theirs.Initiator == ours.GetInitiator() ||
		ours.GetRemoteId() != theirID || theirs.RemoteID != ourID {
		b.Errorf("ours %v, theirs %+v; want IKEv2 between %s and %s with us as %s", ours, theirs, ourID, theirID, b.role)
	}
	child := theirs.Child("INSTALLED")
	if child.Mode != "TUNNEL" || !child.InUDP || child.ESN {
		b.Errorf("strongSwan has %+v; want tunnel mode in UDP without ESN", child)
	}
	b.noFailures()
}
