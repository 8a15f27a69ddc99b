package model

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// FilterAction is what happens to traffic that a filter matches.
type FilterAction struct {
	Meta
	Action   ipsec.Action
	Template ipsec.Template // ActionSecure only
	Legacy   []string       // legacy algorithms that Template offers, for warnings
}

// shortBlockBytes bounds an SA whose cipher has blocks of 64 bits (DES, 3DES):
// 2^27 blocks, far below the 2^32 at which blocks begin to repeat ("Sweet32").
const shortBlockBytes = 1 << 30

// DefaultLifetime of a CHILD SA is counted as readLifetime says. 1 TiB is 2^36
// cipher blocks: past that the chance of telling AES-GCM or AES-CBC from a
// random permutation, blocks²/2^129, exceeds 2^-57. Packets need no bound of
// their own: sequence numbers are granted in leases that end before the number
// space does.
var DefaultLifetime = lifetime(time.Hour, 0, 1<<40, 0)

// DefaultReplayWindow is wide enough for the reordering of a multi-queue NIC.
const DefaultReplayWindow = 1024

// maxReplayWindow is what a worker offers: 1 KiB for one SA.
const maxReplayWindow = 8192

// replayWords is the grain of a window: workers keep it in words of 64 bits.
const replayWords = 64

// maxResources is as many queues as a worker can have.
const maxResources = 64

// DefaultSecurity is what a secure action offers when it lists nothing.
var DefaultSecurity = []ipsec.Proposal{mustESP("aes128gcm16"), mustESP("aes256gcm16")}

func mustESP(s string) ipsec.Proposal {
	p, err := ipsec.ParseProposal(ipsec.ProtocolESP, s)
	if err != nil {
		panic(err) // a wrong literal above
	}
	return p
}

func lifetime(d, use time.Duration, bytes, packets uint64) ipsec.Lifetime {
	return ipsec.Lifetime{
		TimeSoft: d, TimeHard: 2 * d,
		UseSoft: use, UseHard: 2 * use,
		Bytes:   ipsec.Limit{Soft: bytes, Hard: 2 * bytes},
		Packets: ipsec.Limit{Soft: packets, Hard: 2 * packets},
	}
}

func readFilterAction(v value, m Meta) *FilterAction {
	a := &FilterAction{Meta: m}
	t := ipsec.Template{Mode: ipsec.ModeTransport, Lifetime: DefaultLifetime, ReplayWindow: DefaultReplayWindow}
	var action value
	var encap *value
	var pfs []ipsec.Transform
	var secureOnly []value
	var legacy []legacyUse
	allowLegacy := false
	var outer, tfc *value
	secure := func(name string, read func(value)) key {
		return key{name, false, func(v value) { secureOnly = append(secureOnly, v); read(v) }}
	}
	ok := v.mapping(
		key{"action", true, func(v value) {
			action = v
			if s := v.text("permit, block or secure"); s != "" {
				var err error
				if a.Action, err = ipsec.ParseAction(s); err != nil {
					v.fail("got %s, want permit, block or secure%s", v.got(), suggest(s, []string{"permit", "block", "secure"}))
				}
			}
		}},
		secure("mode", func(v value) {
			if s := v.text("transport or tunnel"); s != "" {
				m, err := ipsec.ParseMode(s)
				if err != nil {
					v.want("transport or tunnel")
					return
				}
				t.Mode = m
			}
		}),
		secure("security", func(v value) {
			v.list("security methods, such as {esp: {encryption: aes128gcm16}}", func(_ int, v value) {
				if p, ok := readSecurity(v, &legacy); ok {
					t.Proposals = append(t.Proposals, p)
				}
			})
			if len(v.node.Content) == 0 {
				v.want("at least one security method; leave the key out for aes128gcm16, then aes256gcm16")
			}
		}),
		secure("pfs", func(v value) { pfs = readPFS(v, &legacy) }),
		secure("lifetime", func(v value) { t.Lifetime = readLifetime(v) }),
		secure("acceptClear", func(v value) { t.AcceptClear = v.boolean() }),
		secure("fallbackToClear", func(v value) {
			if v.boolean() {
				v.refuse("leave it out: traffic waits for the SA and never goes in clear")
			}
		}),
		secure("replayWindow", func(v value) {
			n := v.number("a number of packets", replayWords, maxReplayWindow)
			if n%replayWords != 0 {
				v.fail("got %s, want a multiple of %d", v.got(), replayWords)
			}
			t.ReplayWindow = uint32(n)
		}),
		secure("perResource", func(v value) {
			t.Resources = uint32(v.number("a number of CHILD SAs beside the first", 0, maxResources))
		}),
		secure("tfc", func(v value) { t.PadTo, tfc = readTFC(v), &v }),
		secure("outer", func(v value) { t.Outer, outer = readOuter(v), &v }),
		secure("forceEncap", func(v value) {
			if t.ForceEncap = v.boolean(); t.ForceEncap {
				encap = &v
			}
		}),
		secure("allowLegacy", func(v value) { allowLegacy = v.boolean() }),
	)
	for _, l := range legacy {
		if !allowLegacy {
			l.at.fail("%s is a legacy algorithm, which RFC 8221 or RFC 8247 says not to use: want another, or allowLegacy: true beside it if an old peer needs it", l.name)
		}
		a.Legacy = append(a.Legacy, l.name)
	}
	if ok && a.Action != 0 && a.Action != ipsec.ActionSecure {
		for _, s := range secureOnly {
			s.fail("the action is %s, which takes no security settings; want action: secure, or leave it out", action.node.Value)
		}
	}
	if outer != nil && a.Action == ipsec.ActionSecure && t.Mode == ipsec.ModeTransport {
		outer.fail("transport mode has no outer header; want mode: tunnel, or leave it out")
	}
	if tfc != nil && a.Action == ipsec.ActionSecure && t.Mode == ipsec.ModeTransport {
		tfc.fail("in transport mode nothing tells where padding begins (RFC 4303 section 2.7); want mode: tunnel, or leave it out")
	}
	if a.Action == ipsec.ActionSecure {
		if t.Proposals == nil {
			t.Proposals = DefaultSecurity
		}
		if encap != nil && slices.ContainsFunc(t.Proposals, isAH) {
			encap.fail("ah cannot travel in UDP (RFC 3948 has no such encapsulation); want security with esp only, or leave forceEncap out")
		}
		if tfc != nil && slices.ContainsFunc(t.Proposals, isAH) {
			tfc.fail("ah hides nothing, and has no padding; want security with esp only, or leave it out")
		}
		switch len(pfs) {
		case 0:
		case 1:
			t.PFS = pfs[0].ID
		default: // several methods are part of what is proposed
			t.Proposals = slices.Clone(t.Proposals)
			for i, p := range t.Proposals {
				t.Proposals[i].Transforms = slices.Concat(p.Transforms, pfs)
			}
		}
		if slices.ContainsFunc(t.Proposals, shortBlocks) && t.Lifetime.Bytes.Soft > shortBlockBytes {
			t.Lifetime.Bytes = ipsec.Limit{Soft: shortBlockBytes, Hard: 2 * shortBlockBytes}
		}
		a.Template = t
	}
	return a
}

func isAH(p ipsec.Proposal) bool { return p.Protocol == ipsec.ProtocolAH }

// readOuter reads how the outer header is filled.
func readOuter(v value) (h ipsec.OuterHeader) {
	v.mapping(
		key{"df", false, func(v value) {
			if s := v.text("auto, copy, set or clear"); s != "" {
				var err error
				if h.DF, err = ipsec.ParseDF(s); err != nil {
					v.want("auto, copy, set or clear")
				}
			}
		}},
		key{"dscp", false, func(v value) {
			if v.isString() && v.node.Value == "copy" {
				return
			}
			h.FixedDSCP, h.DSCP = true, uint8(v.number("copy or a number", 0, 63))
		}},
		key{"flowLabel", false, func(v value) {
			switch v.text("auto or copy") {
			case "copy":
				h.CopyLabel = true
			case "auto", "":
			default:
				v.want("auto or copy")
			}
		}},
	)
	return h
}

// Bounds of tfc.padTo.
const minPadTo, maxPadTo = 64, 9000

// readTFC reads how traffic flow confidentiality is had.
func readTFC(v value) (padTo uint16) {
	v.mapping(
		key{"padTo", true, func(v value) {
			if v.isString() && v.node.Value == ipsec.PadName(ipsec.PadToMTU) {
				padTo = ipsec.PadToMTU
				return
			}
			padTo = uint16(v.number("mtu or a number of octets", minPadTo, maxPadTo))
		}},
	)
	return padTo
}

func shortBlocks(p ipsec.Proposal) bool {
	return slices.ContainsFunc(p.OfType(ipsec.TransformENCR), func(t ipsec.Transform) bool {
		a, ok := ipsec.LookupAlgorithm(t)
		return ok && a.Block == 8
	})
}

// legacyUse is a legacy algorithm in a list, and where.
type legacyUse struct {
	at   value
	name string
}

func readSecurity(v value, legacy *[]legacyUse) (p ipsec.Proposal, ok bool) {
	var esp, ah *value
	v.mapping(
		key{"esp", false, func(v value) { esp = &v }},
		key{"ah", false, func(v value) { ah = &v }},
	)
	switch {
	case esp != nil && ah != nil:
		v.fail("got esp and ah in one security method; want one of them, or a list of two methods to choose from. AH around ESP is two SAs, so it takes a second rule, whose filter says protocol: esp and whose action says ah")
	case esp != nil:
		return readSuiteOf(*esp, ipsec.ProtocolESP, ipsec.UseESP, legacy)
	case ah != nil:
		return readSuiteOf(*ah, ipsec.ProtocolAH, ipsec.UseAH, legacy)
	case len(v.node.Content) == 0:
		v.want("{esp: {encryption: ..., integrity: ...}} or {ah: {integrity: ...}}")
	}
	return p, false
}

func readSuiteOf(v value, proto ipsec.Protocol, use ipsec.Use, legacy *[]legacyUse) (p ipsec.Proposal, ok bool) {
	var names []string
	good := true
	algorithm := func(t ipsec.TransformType) func(value) {
		return func(v value) {
			a, ok := readAlgorithm(v, t, use)
			if good = good && ok; !ok {
				return
			}
			if a.Standing == ipsec.StandingLegacy {
				*legacy = append(*legacy, legacyUse{v, a.Name})
			}
			names = append(names, a.Name)
		}
	}
	if proto == ipsec.ProtocolAH { // which encrypts nothing
		v.mapping(key{"integrity", true, algorithm(ipsec.TransformINTEG)})
	} else {
		v.mapping(key{"encryption", true, algorithm(ipsec.TransformENCR)}, key{"integrity", false, algorithm(ipsec.TransformINTEG)})
	}
	if !good || len(names) == 0 {
		return p, false
	}
	p, err := ipsec.ParseProposal(proto, strings.Join(names, "-"))
	if err != nil {
		v.fail("%s", err)
		return p, false
	}
	return p, true
}

// readAlgorithm reads the name of one algorithm of one kind, legacy ones too.
func readAlgorithm(v value, t ipsec.TransformType, use ipsec.Use) (*ipsec.Algorithm, bool) {
	known := algorithmNames(t, use)
	s := v.text("one of " + strings.Join(known, ", "))
	if s == "" {
		return nil, false
	}
	a, ok := ipsec.AlgorithmByName(s)
	if !ok || a.Type != t || a.Use&use == 0 {
		v.fail("got %s, want one of %s%s", v.got(), strings.Join(known, ", "), suggest(s, known))
		return nil, false
	}
	return a, true
}

func algorithmNames(t ipsec.TransformType, use ipsec.Use) []string {
	var out []string
	for _, a := range ipsec.Algorithms() {
		if a.Type == t && a.Use&use != 0 && a.Standing != ipsec.StandingLegacy {
			out = append(out, a.Name)
		}
	}
	slices.Sort(out)
	return out
}

// readPFS reads a key exchange, and what is done in addition to it: x25519, or
// x25519-ke1_mlkem768.
func readPFS(v value, legacy *[]legacyUse) []ipsec.Transform {
	if v.isString() && v.node.Value == "none" {
		return nil
	}
	s := v.text("a key exchange such as x25519 or x25519-ke1_mlkem768, or none")
	if s == "" {
		return nil
	}
	for word := range strings.SplitSeq(s, "-") {
		if a, ok := ipsec.AlgorithmByName(word); !ok || a.Type != ipsec.TransformKE && !a.Type.AdditionalKE() {
			known := algorithmNames(ipsec.TransformKE, ipsec.UseESP)
			v.fail("got %s, want one of %s, with additional ones after it such as ke1_mlkem768%s", quote(word), strings.Join(known, ", "), suggest(word, known))
			return nil
		}
	}
	p, err := ipsec.ParseProposal(ipsec.ProtocolESP, "aes128gcm16-noesn-"+s)
	if err != nil {
		v.fail("%s", err)
		return nil
	}
	for _, name := range p.Legacy() {
		*legacy = append(*legacy, legacyUse{v, name})
	}
	return p.Transforms[2:]
}

// readLifetime reads when an SA is replaced. Each limit written is the soft
// one; the hard one, at which an SA stops, is twice it. The time between them
// is how long a key manager may be away before traffic stops.
func readLifetime(v value) ipsec.Lifetime {
	d, use := DefaultLifetime.TimeSoft, DefaultLifetime.UseSoft
	bytes, packets := DefaultLifetime.Bytes.Soft, DefaultLifetime.Packets.Soft
	v.mapping(
		key{"time", false, func(v value) { d = v.duration(10*time.Second, 30*24*time.Hour) }},
		key{"use", false, func(v value) { use = v.duration(10*time.Second, 30*24*time.Hour) }},
		key{"bytes", false, func(v value) { bytes = v.bytes(1 << 20) }},
		key{"packets", false, func(v value) { packets = v.number("a number of packets", 1000, 1<<62) }},
	)
	return lifetime(d, use, bytes, packets)
}

// readSuite reads an IKE suite such as aes256gcm16-prfsha256-x25519.
func readSuite(v value) (ipsec.Proposal, bool) {
	s := v.text("an IKE suite such as aes256gcm16-prfsha256-x25519")
	if s == "" {
		return ipsec.Proposal{}, false
	}
	for word := range strings.SplitSeq(s, "-") {
		if _, ok := ipsec.AlgorithmByName(word); !ok {
			known := slices.Concat(algorithmNames(ipsec.TransformENCR, ipsec.UseIKE), algorithmNames(ipsec.TransformINTEG, ipsec.UseIKE),
				algorithmNames(ipsec.TransformPRF, ipsec.UseIKE), algorithmNames(ipsec.TransformKE, ipsec.UseIKE))
			v.fail("unknown algorithm %s in suite %s, want a suite such as aes256gcm16-prfsha256-x25519%s", quote(word), quote(s), suggest(word, known))
			return ipsec.Proposal{}, false
		}
	}
	p, err := ipsec.ParseProposal(ipsec.ProtocolIKE, s)
	if err != nil {
		v.fail("%s", err)
		return ipsec.Proposal{}, false
	}
	return p, true
}

func mustIKE(s string) ipsec.Proposal {
	p, err := ipsec.ParseProposal(ipsec.ProtocolIKE, s)
	if err != nil {
		panic(fmt.Sprint("model: ", err)) // a wrong literal in policy.go
	}
	return p
}
