package daemon

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestGarbageIsCollectedAtTheFloorOrAtTwiceWhatIsLive(t *testing.T) {
	for _, x := range []struct {
		live uint64
		want int
	}{
		{0, 3100}, {1 << 20, 3100}, {4 << 20, 700}, {16 << 20, 100}, {64 << 20, 100}, {1 << 40, 100},
	} {
		if got := percent(x.live); got != x.want {
			t.Errorf("with %d octets live: GOGC is %d, want %d", x.live, got, x.want)
		}
	}
}

var kept []byte

// The percentage follows what is live: with more than half of the floor it is Go's own.
func TestEachCollectionSetsWhenTheNextOneIsDue(t *testing.T) {
	t.Setenv("GOGC", "")
	old := debug.SetGCPercent(100)
	t.Cleanup(func() { kept = nil; debug.SetGCPercent(old) })
	floorHeap()
	for range 2 {
		kept = make([]byte, heapFloor)
		waitPercent(t, func(p int) bool { return p == 100 })
		kept = nil
		waitPercent(t, func(p int) bool { return p > 100 })
	}
}

func waitPercent(t *testing.T, ok func(int) bool) {
	t.Helper()
	p := 0
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		runtime.GC()
		p = debug.SetGCPercent(100)
		debug.SetGCPercent(p)
		if ok(p) {
			return
		}
	}
	t.Fatalf("GOGC stays at %d", p)
}
