package lab

import (
	"bufio"
	"fmt"
	"strconv"
	"strings"
)

// SwanSA is an IKE SA as strongSwan lists it.
type SwanSA struct {
	Name         string
	State        string // ESTABLISHED, CONNECTING, ...
	Version      int
	InitiatorSPI string
	ResponderSPI string
	LocalHost    string
	RemoteHost   string
	RemoteID     string
	Initiator    bool
	Encryption   string // AES_GCM_16, ...
	KeyExchange  string // CURVE_25519, ...
	Children     []SwanChild
}

// SwanChild is a CHILD SA as strongSwan lists it.
type SwanChild struct {
	Name       string
	State      string // INSTALLED, REKEYED, ...
	Mode       string
	Protocol   string // ESP or AH
	InUDP      bool
	SPIIn      uint32
	SPIOut     uint32
	BytesIn    uint64
	BytesOut   uint64
	PacketsIn  uint64
	PacketsOut uint64
	Encryption string
	KeyBits    int
	Integrity  string
	ESN        bool
	LocalTS    []string
	RemoteTS   []string
}

// Child is the last CHILD SA in a state, or nil.
func (sa SwanSA) Child(state string) *SwanChild {
	for i := len(sa.Children) - 1; i >= 0; i-- {
		if sa.Children[i].State == state {
			return &sa.Children[i]
		}
	}
	return nil
}

// section is a node of the tree that vici messages are made of.
type section struct {
	name   string
	values map[string]string
	lists  map[string][]string
	subs   []*section
}

func (s *section) sub(name string) *section {
	for _, c := range s.subs {
		if c.name == name {
			return c
		}
	}
	return &section{}
}

func parseSAs(pretty string) ([]SwanSA, error) {
	root, err := parsePretty(pretty)
	if err != nil {
		return nil, err
	}
	var out []SwanSA
	for _, event := range root.subs {
		if event.name != "list-sa event" {
			continue
		}
		for _, ike := range event.subs {
			out = append(out, swanSA(ike))
		}
	}
	return out, nil
}

func swanSA(s *section) SwanSA {
	v := s.values
	sa := SwanSA{
		Name: s.name, State: v["state"], Version: int(number(v["version"], 10)),
		InitiatorSPI: v["initiator-spi"], ResponderSPI: v["responder-spi"],
		LocalHost: v["local-host"], RemoteHost: v["remote-host"], RemoteID: v["remote-id"],
		Initiator: v["initiator"] == "yes", Encryption: v["encr-alg"], KeyExchange: v["dh-group"],
	}
	for _, c := range s.sub("child-sas").subs {
		v := c.values
		sa.Children = append(sa.Children, SwanChild{
			Name: v["name"], State: v["state"], Mode: v["mode"], Protocol: v["protocol"], InUDP: v["encap"] == "yes",
			SPIIn: uint32(number(v["spi-in"], 16)), SPIOut: uint32(number(v["spi-out"], 16)),
			BytesIn: number(v["bytes-in"], 10), BytesOut: number(v["bytes-out"], 10),
			PacketsIn: number(v["packets-in"], 10), PacketsOut: number(v["packets-out"], 10),
			Encryption: v["encr-alg"], KeyBits: int(number(v["encr-keysize"], 10)), Integrity: v["integ-alg"],
			ESN: v["esn"] == "1", LocalTS: c.lists["local-ts"], RemoteTS: c.lists["remote-ts"],
		})
	}
	return sa
}

// number is 0 for a value that charon does not list.
func number(s string, base int) uint64 {
	n, _ := strconv.ParseUint(s, base, 64)
	return n
}

// parsePretty reads the output of `swanctl --pretty`: sections in braces, lists in
// brackets, one thing a line.
func parsePretty(text string) (*section, error) {
	root := &section{}
	path := []*section{root}
	list := ""
	in := bufio.NewScanner(strings.NewReader(text))
	for number := 1; in.Scan(); number++ {
		line := strings.TrimSpace(in.Text())
		top := path[len(path)-1]
		name, opens := strings.CutSuffix(line, " {")
		key, value, isValue := strings.Cut(line, " = ")
		switch {
		case line == "":
		case list != "" && line == "]":
			list = ""
		case list != "":
			top.lists[list] = append(top.lists[list], line)
		case line == "}" && len(path) > 1:
			path = path[:len(path)-1]
		case opens:
			s := &section{name: name, values: map[string]string{}, lists: map[string][]string{}}
			top.subs = append(top.subs, s)
			path = append(path, s)
		case isValue && len(path) > 1 && value == "[":
			list = key
		case isValue && len(path) > 1:
			top.values[key] = value
		default:
			return nil, fmt.Errorf("swanctl --pretty: line %d is %q; want a section, a value or a list", number, line)
		}
	}
	if len(path) != 1 || list != "" {
		return nil, fmt.Errorf("swanctl --pretty: output ends inside a section")
	}
	return root, nil
}
