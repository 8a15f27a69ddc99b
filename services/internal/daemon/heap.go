package daemon

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// heapFloor is the size of the heap below which garbage is not collected. The Go
// runtime collects when the heap has doubled; with few SAs it holds some megabytes,
// so that a busy daemon would collect all the time, at an eighth of its CPU time.
const heapFloor = 32 << 20

// floorHeap keeps the collector away below heapFloor, and to its own rule above,
// unless the environment has a rule (GOGC).
func floorHeap() {
	if os.Getenv("GOGC") != "" {
		return
	}
	setPercent(liveHeap())
	again()
}

// again runs at the end of each collection: of what is cleaned up nothing refers to x.
func again() {
	x := new([16]byte)
	runtime.AddCleanup(x, func(struct{}) {
		setPercent(liveHeap())
		again()
	}, struct{}{})
}

// liveHeap is what the last collection left.
func liveHeap() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	if s[0].Value.Kind() != metrics.KindUint64 {
		return heapFloor
	}
	return s[0].Value.Uint64()
}

// setPercent makes the next collection begin at heapFloor or at twice what is live.
func setPercent(live uint64) { debug.SetGCPercent(percent(live)) }

func percent(live uint64) int {
	live = max(live, 1<<20)
	return int(max(heapFloor*100/live, 200)) - 100
}
