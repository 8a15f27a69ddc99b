package workerapi

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/testudo-ipsec/testudo/dataplane/backend"
)

// Metrics exports a backend's counters. Whys and rules are bounded by the code
// and the policy; SAs are summed, because their number is not.
type Metrics struct{ Backend backend.Backend }

var (
	whyDesc     = prometheus.NewDesc("testudo_worker_packets_total", "Packets by what became of them.", []string{"why"}, nil)
	rulePackets = prometheus.NewDesc("testudo_worker_rule_packets_total", "Packets by policy rule.", []string{"rule"}, nil)
	ruleBytes   = prometheus.NewDesc("testudo_worker_rule_bytes_total", "Octets by policy rule.", []string{"rule"}, nil)
	saCount     = prometheus.NewDesc("testudo_worker_sas", "Simplex SAs in place.", nil, nil)
	saErrors    = prometheus.NewDesc("testudo_worker_sa_errors", "Packets discarded on the SAs now in place.", nil, nil)
)

// Describe implements prometheus.Collector.
func (w Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{whyDesc, rulePackets, ruleBytes, saCount, saErrors} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (w Metrics) Collect(ch chan<- prometheus.Metric) {
	c := w.Backend.Counters()
	for _, x := range c.Whys {
		ch <- prometheus.MustNewConstMetric(whyDesc, prometheus.CounterValue, float64(x.Packets), x.Why)
	}
	for _, r := range c.Rules {
		ch <- prometheus.MustNewConstMetric(rulePackets, prometheus.CounterValue, float64(r.Packets), r.Rule)
		ch <- prometheus.MustNewConstMetric(ruleBytes, prometheus.CounterValue, float64(r.Bytes), r.Rule)
	}
	var errs uint64
	for _, sa := range c.SAs {
		errs += sa.Errors
	}
	ch <- prometheus.MustNewConstMetric(saCount, prometheus.GaugeValue, float64(len(c.SAs)))
	ch <- prometheus.MustNewConstMetric(saErrors, prometheus.GaugeValue, float64(errs))
}
