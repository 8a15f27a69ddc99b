package ikeload

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// maxWhys bounds the reasons of failure that are told apart.
const maxWhys = 64

// Report is what a run showed. Times are of set-ups that succeeded, from the
// first IKE_SA_INIT request to both directions of the CHILD SA.
type Report struct {
	To        string  `json:"to"`
	IKE       string  `json:"ike"`
	ESP       string  `json:"esp"`
	Count     int     `json:"count"` // started
	Succeeded int     `json:"succeeded"`
	Failed    int     `json:"failed"`
	Lost      int     `json:"lost"` // of those held, ended by the responder
	Seconds   float64 `json:"seconds"`
	PerSecond float64 `json:"setupsPerSecond"`
	P50       float64 `json:"p50Ms"`
	P90       float64 `json:"p90Ms"`
	P99       float64 `json:"p99Ms"`
	Max       float64 `json:"maxMs"`

	Sent     uint64 `json:"datagramsSent"`
	Received uint64 `json:"datagramsReceived"`
	Ignored  uint64 `json:"datagramsIgnored"` // for no IKE SA of this run

	Failures []Reason `json:"failures"` // most frequent first
}

// Reason is one cause of failed set-ups.
type Reason struct {
	Why    string `json:"why"`
	Count  int    `json:"count"`
	Detail string `json:"detail"` // of the first
}

// tally collects the outcomes of a run.
type tally struct {
	mu       sync.Mutex
	took     []time.Duration
	failures map[string]*Reason
	failed   int
	lost     int
	last     time.Time // when the last set-up ended
}

func (y *tally) success(d time.Duration) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.took = append(y.took, d)
	y.last = time.Now()
}

func (y *tally) failure(why, detail string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.failed++
	y.last = time.Now()
	r := y.failures[why]
	if r == nil {
		if y.failures == nil {
			y.failures = make(map[string]*Reason)
		}
		if len(y.failures) >= maxWhys {
			why = "OTHER"
		}
		r = &Reason{Why: why, Detail: detail}
		y.failures[why] = r
	}
	r.Count++
}

func (y *tally) loss() {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.lost++
}

func (y *tally) report(o *Options, began time.Time) Report {
	y.mu.Lock()
	defer y.mu.Unlock()
	d := sortDurations(y.took)
	ms := func(p int) float64 { return float64(percentile(d, p)) / float64(time.Millisecond) }
	r := Report{
		To: o.To.String(), IKE: o.IKE.String(), ESP: o.ESP.String(), Count: len(d) + y.failed, Succeeded: len(d), Failed: y.failed, Lost: y.lost,
		P50: ms(50), P90: ms(90), P99: ms(99), Max: ms(100), Failures: []Reason{},
	}
	if !y.last.IsZero() {
		r.Seconds = y.last.Sub(began).Seconds()
	}
	if r.Seconds > 0 {
		r.PerSecond = float64(r.Succeeded) / r.Seconds
	}
	for _, f := range slices.SortedFunc(maps.Values(y.failures), func(a, b *Reason) int { return b.Count - a.Count }) {
		r.Failures = append(r.Failures, *f)
	}
	return r
}
