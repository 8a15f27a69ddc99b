package compile

import (
	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/policyd/model"
)

// exempt adds the rules that come before all others. IKE is exempt by its
// local port only: an exemption by remote port would open every local port to
// whoever sends from it. Neighbor discovery is Router Solicitation (133) to
// Neighbor Advertisement (136) of RFC 4861; Redirect (137) is not needed to
// reach anybody and stays under policy.
func (b *builder) exempt() {
	for _, port := range []struct {
		name   string
		number uint16
	}{{"ike", 500}, {"ike-natt", 4500}} {
		for _, every := range []span{everyIPv4, everyIPv6} {
			b.permit(port.name, ipsec.Selector{
				Local:  side(every, 17, model.PortRange{First: port.number, Last: port.number}),
				Remote: side(every, 17, model.AnyPort),
			})
		}
	}
	types := model.PortRange{First: 133 << 8, Last: 136<<8 | 255}
	b.permit("neighborDiscovery", ipsec.Selector{Local: side(everyIPv6, 58, types), Remote: side(everyIPv6, 58, types)})
}

func (b *builder) permit(what string, s ipsec.Selector) {
	name := b.policy.Name + "/exempt#" + what
	if what != "neighborDiscovery" && !s.Local.First.Is4() {
		name += "/v6"
	}
	b.rules = append(b.rules, built{
		ipsec.Rule{Name: name, Policy: b.policy.Name, Weight: Weight(TierIPsec, s, ipsec.Both), Direction: ipsec.Both, Selector: s, Action: ipsec.ActionPermit},
		Origin{Rule: b.policy.Pos, Filter: b.policy.Pos, Exempt: true},
	})
}
