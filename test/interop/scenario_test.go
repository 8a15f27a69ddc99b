package interop

import (
	"slices"
	"testing"

	"github.com/testudo-ipsec/testudo/test/lab"
)

// role is ours.
type role string

const (
	initiator role = "initiator"
	responder role = "responder"
)

var bothRoles = []role{initiator, responder}

// topology is where the two ends are.
type topology uint8

const (
	pair     topology = iota // two hosts on one wire; the tunnel protects the hosts themselves
	sites                    // two gateways with a router between; the tunnel joins their subnets
	sitesNAT                 // the same, with the site of whoever starts behind a NAT
)

// scenario is one row: what is set up, what is done, what must come of it.
type scenario struct {
	name  string // without the role, which is appended
	shows string
	role  role
	at    topology
	// strongSwan is in a machine, with the kernel's ESP and AH.
	kernel bool
	other  string // the peer is this one instead, in a machine; the steps start it
	v6     bool   // outer addresses, and inner ones too
	ours   policy
	swan   func(*lab.SwanConn) // changes the connection that matches the default policy; nil for none
	peer   lab.SwanOptions
	certs  func(*lab.CA) (ours, theirs lab.Cert) // of one CA; nil for none
	made   func(*testing.T) made                 // of a PKI that is not the lab's; nil for none
	files  map[string]string                     // more of keymgrd's secrets
	steps  func(*bed)
}

func (s scenario) fullName() string { return s.name + "-" + string(s.role) }

func (s scenario) run(t *testing.T) {
	b := newBed(t, s)
	s.steps(b)
	b.requireProtected()
	b.requireHealthy()
}

// twice makes the rows of both roles of scenarios that leave it out.
func twice(rows ...scenario) []scenario {
	var out []scenario
	for _, s := range rows {
		for _, r := range bothRoles {
			s.role = r
			out = append(out, s)
		}
	}
	return out
}

func scenarios() []scenario {
	return slices.Concat(longOnes(), tunnels(), suites(), narrowing(), rekeys(), resumes(), endings(), refusals(), certificates(), pkis(), ocsps(), repeated(), uniques(), networks(), mobike(), extras(), fragments(), hybrids())
}
