package interop

func networks() []scenario {
	return append(twice(
		scenario{name: "ikev2-nat-ipv4", shows: "the initiator is behind a NAT, IPv4", at: sitesNAT, steps: carries},
		scenario{name: "ikev2-nat-ipv6", shows: "the initiator is behind a NAT, IPv6", at: sitesNAT, v6: true, steps: carries},
	), twice(
		scenario{name: "ikev2-loss", shows: "each exchange loses its first request and its first response", at: sites,
			steps: func(b *bed) {
				b.wan.Nft(loseTwoOfFive)
				b.start()
				b.wan.Lose(0)
				b.ping()
			}},
	)...)
}

// loseTwoOfFive drops of an exchange the request, lets its first retransmission
// pass, drops the response to that, and lets the rest pass. (Node.Lose(0) ends it.)
const loseTwoOfFive = `table inet lose {
	chain forward {
		type filter hook forward priority filter
		udp dport { 500, 4500 } numgen inc mod 5 vmap { 0 : drop, 1 : accept, 2 : drop, 3 : accept, 4 : accept }
	}
}
`
