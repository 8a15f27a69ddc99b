package policyapi

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/testudo-ipsec/testudo/policyd/feed"
)

// Metrics exports the state of the policy feed.
type Metrics struct{ Hub *feed.Hub }

var (
	revisionDesc    = prometheus.NewDesc("testudo_policy_revision", "Revision of the store that is in force.", nil, nil)
	subscribersDesc = prometheus.NewDesc("testudo_policy_subscribers", "Subscribers of the feed.", []string{"role", "state"}, nil)
)

// Describe implements prometheus.Collector.
func (Metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- revisionDesc
	ch <- subscribersDesc
}

// Collect implements prometheus.Collector.
func (p Metrics) Collect(ch chan<- prometheus.Metric) {
	v, _ := p.Hub.Version()
	ch <- prometheus.MustNewConstMetric(revisionDesc, prometheus.GaugeValue, float64(v.Revision))
	type group struct{ role, state string }
	n := map[group]int{}
	for _, s := range p.Hub.Status() {
		role, _, _ := strings.Cut(s.Subscriber, "/")
		switch {
		case !s.Connected:
			n[group{role, "gone"}]++
		case s.Nack != nil:
			n[group{role, "refused"}]++
		case s.InSync:
			n[group{role, "in-sync"}]++
		default:
			n[group{role, "behind"}]++
		}
	}
	for g, c := range n {
		ch <- prometheus.MustNewConstMetric(subscribersDesc, prometheus.GaugeValue, float64(c), g.role, g.state)
	}
}
