package interop

import (
	"fmt"
	"os/exec"
	"regexp"
	"sync"
	"testing"

	"github.com/testudo-ipsec/testudo/test/lab"
)

func TestMain(m *testing.M) { lab.Main(m, results.summary) }

// results are the lines printed so far.
var results report

type report struct {
	mu             sync.Mutex
	passed, failed int
}

func (r *report) add(s scenario, failed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	verdict := "PASS"
	if failed {
		verdict = "FAIL"
		r.failed++
	} else {
		r.passed++
	}
	peer := s.other
	if peer == "" {
		peer = peerVersion()
	}
	fmt.Printf("%s %s: %s, %s, %s\n", verdict, s.fullName(), peer, s.shows, s.role)
}

func (r *report) summary() { fmt.Printf("%d passed, %d failed\n", r.passed, r.failed) }

// peerVersion is such as "strongSwan 5.9.8". The command fails without a daemon to
// talk to, after it has said that.
var peerVersion = sync.OnceValue(func() string {
	out, err := exec.Command("swanctl", "--version").CombinedOutput()
	if v := regexp.MustCompile(`strongSwan [0-9.]+`).Find(out); v != nil {
		return string(v)
	}
	return fmt.Sprintf("strongSwan of unknown version (%v)", err)
})

func TestInterop(t *testing.T) {
	names := map[string]bool{}
	for _, s := range scenarios() {
		if names[s.fullName()] {
			t.Errorf("two scenarios are called %s", s.fullName())
		}
		names[s.fullName()] = true
		t.Run(s.fullName(), func(t *testing.T) {
			t.Parallel()
			// Before the bed's clean-ups, so after them in time.
			t.Cleanup(func() { results.add(s, t.Failed()) })
			s.run(t)
		})
	}
}
