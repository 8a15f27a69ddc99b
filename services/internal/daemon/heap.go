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
	setPercent()
	again()
}

// again runs at the end of each collection: of what is cleaned up nothing refers to x.
func again() {
	x := new([16]byte)
	runtime.AddCleanup(x, func(struct{}) {
		setPercent()
		again()
	}, struct{}{})
}

// setPercent makes the next collection begin at heapFloor or at twice what is live.
func setPercent() { debug.SetGCPercent(percent(lastCollection())) }

// lastCollection is what the last collection left of the heap, and what it went through
// beside: stacks and globals.
func lastCollection() (live, beside uint64) {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"}}
	metrics.Read(s)
	for _, x := range s {
		if x.Value.Kind() != metrics.KindUint64 {
			return heapFloor, 0
		}
	}
	return s[0].Value.Uint64(), s[1].Value.Uint64() + s[2].Value.Uint64()
}

// percent is for a runtime that lets the heap grow by so much of all that it went
// through (runtime/debug.SetGCPercent).
func percent(live, beside uint64) int {
	live = max(live, 1<<20)
	return int(max((heapFloor-min(live, heapFloor))*100/(live+beside), 100))
}
