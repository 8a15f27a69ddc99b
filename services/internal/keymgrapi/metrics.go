package keymgrapi

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/testudo-ipsec/testudo/keymgr/ike/engine"
)

// Metrics exports an engine's counters.
type Metrics struct{ Engine *engine.Engine }

var (
	dropsDesc     = prometheus.NewDesc("testudo_keymgr_ike_drops_total", "IKE datagrams ignored.", []string{"why"}, nil)
	failuresDesc  = prometheus.NewDesc("testudo_keymgr_failures_total", "Negotiations that came to nothing.", []string{"why"}, nil)
	handshakeDesc = prometheus.NewDesc("testudo_keymgr_handshake_seconds", "From the first message to an established IKE SA.", nil, nil)
)

type figure struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	of   func(*engine.Stats) uint64
}

func counter(name, help string, of func(*engine.Stats) uint64) figure {
	return figure{prometheus.NewDesc("testudo_keymgr_"+name, help, nil, nil), prometheus.CounterValue, of}
}

func gauge(name, help string, of func(*engine.Stats) uint64) figure {
	f := counter(name, help, of)
	f.kind = prometheus.GaugeValue
	return f
}

var figures = []figure{
	counter("ike_received_total", "IKE datagrams from workers.", func(s *engine.Stats) uint64 { return s.Received }),
	counter("ike_sent_total", "IKE datagrams handed to workers.", func(s *engine.Stats) uint64 { return s.Sent }),
	counter("inbox_full_total", "Datagrams dropped because a shard did not keep up.", func(s *engine.Stats) uint64 { return s.InboxFull }),
	counter("panics_total", "IKE SAs ended by a panic: always a bug.", func(s *engine.Stats) uint64 { return s.Panics }),
	gauge("ike_sas", "IKE SAs, half-open ones included.", func(s *engine.Stats) uint64 { return s.Machines }),
	gauge("half_open", "Responders not yet established.", func(s *engine.Stats) uint64 { return s.HalfOpen }),
	counter("cookies_sent_total", "Cookies asked for (RFC 7296 section 2.6).", func(s *engine.Stats) uint64 { return s.CookiesSent }),
	counter("established_total", "IKE SAs that came up.", func(s *engine.Stats) uint64 { return s.Established }),
	counter("legacy_total", "IKE and CHILD SAs that came up with a legacy algorithm.", func(s *engine.Stats) uint64 { return s.Legacy }),
	counter("children_total", "CHILD SAs that came up, rekeys included.", func(s *engine.Stats) uint64 { return s.ChildrenUp }),
	counter("acquires_total", "Packets that asked for an SA.", func(s *engine.Stats) uint64 { return s.Acquires }),
	counter("acquires_failed_total", "Of these, those that got none.", func(s *engine.Stats) uint64 { return s.AcquiresFailed }),
	counter("installs_total", "SAs acknowledged by workers.", func(s *engine.Stats) uint64 { return s.Installs }),
	counter("nacks_total", "Batches refused by workers.", func(s *engine.Stats) uint64 { return s.Nacks }),
	counter("leases_total", "Leases of sequence numbers granted.", func(s *engine.Stats) uint64 { return s.Grants }),
	counter("leases_refused_total", "Lease requests answered by a rekey.", func(s *engine.Stats) uint64 { return s.LeasesRefused }),
	counter("slow_refused_total", "Secret look-ups and key exchanges over a bound.", func(s *engine.Stats) uint64 { return s.SlowRefused }),
	counter("events_dropped_total", "Events lost by watchers that did not keep up.", func(s *engine.Stats) uint64 { return s.EventsDropped }),
	counter("state_restored_total", "IKE SAs taken up from the stored state at the start.", func(s *engine.Stats) uint64 { return s.Restored }),
	counter("state_too_old_total", "Nodes whose stored state was an old copy, and was not used.", func(s *engine.Stats) uint64 { return s.TooOld }),
	counter("state_commits_total", "Batches written to the stored state, one write and one sync each.", func(s *engine.Stats) uint64 { return s.Commits }),
	counter("state_records_total", "Records in these batches.", func(s *engine.Stats) uint64 { return s.RecordsWritten }),
	counter("state_octets_total", "Octets of these records.", func(s *engine.Stats) uint64 { return s.OctetsWritten }),
	counter("state_errors_total", "Batches that could not be written, each try.", func(s *engine.Stats) uint64 { return s.CommitErrors }),
	gauge("state_failing", "1 while the state cannot be written.", func(s *engine.Stats) uint64 {
		if s.StateFailing {
			return 1
		}
		return 0
	}),
	gauge("workers", "Workers attached.", func(s *engine.Stats) uint64 { return s.Workers }),
	gauge("sas_desired", "Simplex SAs that workers should have.", func(s *engine.Stats) uint64 { return s.SADesired }),
	gauge("sas_installed", "Of these, acknowledged.", func(s *engine.Stats) uint64 { return s.SAInstalled }),
	gauge("sas_orphaned", "SAs of an earlier key manager still in use.", func(s *engine.Stats) uint64 { return s.Orphans }),
}

// Describe implements prometheus.Collector.
func (k Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range figures {
		ch <- f.desc
	}
	ch <- dropsDesc
	ch <- failuresDesc
	ch <- handshakeDesc
}

// Collect implements prometheus.Collector.
func (k Metrics) Collect(ch chan<- prometheus.Metric) {
	s := k.Engine.Stats()
	for _, f := range figures {
		ch <- prometheus.MustNewConstMetric(f.desc, f.kind, float64(f.of(&s)))
	}
	for why, n := range s.Drops {
		ch <- prometheus.MustNewConstMetric(dropsDesc, prometheus.CounterValue, float64(n), why)
	}
	for why, n := range s.Failures {
		ch <- prometheus.MustNewConstMetric(failuresDesc, prometheus.CounterValue, float64(n), why)
	}
	buckets, total := map[float64]uint64{}, uint64(0)
	for i, n := range s.Handshakes.Counts {
		total += n
		if i < len(s.Handshakes.Bounds) {
			buckets[s.Handshakes.Bounds[i]] = total
		}
	}
	ch <- prometheus.MustNewConstHistogram(handshakeDesc, total, s.Handshakes.Sum, buckets)
}
