package engine_test

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike/engine"
	"github.com/testudo-ipsec/testudo/keymgr/store/file"
)

// BenchmarkStoredState makes pairs of IKE SAs, one after another, without and with a
// store on disk, and then restores what the store has: 1,000 IKE SAs, or as many as
// TESTUDO_STATE_SAS says.
func BenchmarkStoredState(b *testing.B) {
	pairs := 500
	if n, err := strconv.Atoi(os.Getenv("TESTUDO_STATE_SAS")); err == nil {
		pairs = n / 2
	}
	dir := b.TempDir()
	open := func() engine.Store {
		s, err := file.Open(file.Options{Dir: dir, Keys: []ipsec.Secret{ipsec.CopySecret([]byte("0123456789abcdef"))}})
		if err != nil {
			b.Fatal(err)
		}
		return s
	}
	for _, stored := range []bool{false, true} {
		b.Run(map[bool]string{false: "setup/memory", true: "setup/disk"}[stored], func(b *testing.B) {
			for range b.N {
				c := newCrowd(2)
				e := newEngine(b, func(c *engine.Config) {
					if stored {
						c.Store = open()
					}
				})
				for i := range pairs {
					x, y := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}), netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 2})
					nx, ny := fmt.Sprint("a", i), fmt.Sprint("b", i)
					e.SetPolicy(nx, policy(b, nx, x.String(), ny, y.String(), 1))
					e.SetPolicy(ny, policy(b, ny, y.String(), nx, x.String(), 1))
					c.attach(b, e, nx, x)
					c.attach(b, e, ny, y)
				}
				start := time.Now()
				for i := range pairs {
					if _, err := e.Initiate(b.Context(), fmt.Sprint("a", i), "rule-0"); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(time.Since(start).Microseconds())/float64(pairs), "us/setup")
				if s := e.Stats(); stored {
					b.ReportMetric(float64(s.OctetsWritten)/float64(2*pairs), "octets/SA")
					b.ReportMetric(float64(s.Commits)/float64(pairs), "commits/setup")
					b.ReportMetric(float64(s.CommitWait.Microseconds())/float64(max(s.RecordsWritten, 1)), "us/record")
				}
				e.Close()
				c.close()
				if stored {
					return // the next one would restore
				}
			}
		})
	}
	b.Run("restore", func(b *testing.B) {
		for b.Loop() {
			start := time.Now()
			e := newEngine(b, func(c *engine.Config) { c.Store = open() })
			b.ReportMetric(float64(e.Stats().Restored), "SAs")
			b.ReportMetric(float64(e.Stats().Restored)/time.Since(start).Seconds(), "SAs/s")
			e.Close()
		}
	})
}
