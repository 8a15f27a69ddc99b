package daemon

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"testing"
	"time"
)

func TestGarbageIsCollectedAtTheFloorOrAtTwiceWhatIsLive(t *testing.T) {
	for _, x := range []struct {
		live, beside uint64
		want         int
	}{
		{0, 0, 3100}, {1 << 20, 0, 3100}, {4 << 20, 0, 700}, {16 << 20, 0, 100}, {64 << 20, 0, 100}, {1 << 40, 0, 100},
		{1 << 20, 1 << 20, 1550}, {4 << 20, 10 << 20, 200}, {4 << 20, 64 << 20, 100},
	} {
		if got := percent(x.live, x.beside); got != x.want {
			t.Errorf("with %d octets live and %d beside: GOGC is %d, want %d", x.live, x.beside, got, x.want)
		}
	}
}

// Stacks count for the runtime, and do not move the floor.
func TestManyStacksDoNotMoveTheFloor(t *testing.T) {
	t.Setenv("GOGC", "")
	old := debug.SetGCPercent(100)
	t.Cleanup(func() { debug.SetGCPercent(old) })
	var group sync.WaitGroup
	stop := make(chan struct{})
	for range 1000 {
		group.Go(func() {
			var b [4000]byte
			<-stop
			runtime.KeepAlive(&b)
		})
	}
	defer group.Wait()
	defer close(stop)
	floorHeap()
	goal := []metrics.Sample{{Name: "/gc/heap/goal:bytes"}}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		runtime.GC()
		if metrics.Read(goal); goal[0].Value.Uint64() > heapFloor*9/10 && goal[0].Value.Uint64() < heapFloor*11/10 {
			return
		}
	}
	t.Errorf("the next collection begins at %d octets, want about %d", goal[0].Value.Uint64(), heapFloor)
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
