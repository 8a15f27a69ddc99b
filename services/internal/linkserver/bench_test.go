package linkserver_test

import (
	"syscall"
	"testing"
	"time"
)

// BenchmarkInstall10000 pushes 10,000 SAs (5,000 CHILD SAs, AES-128-GCM with
// ESN) all the way: from a machine's effects through the engine and its
// records, as messages over gRPC on a unix socket, into the SAD of a worker's
// packet engine, and the acknowledgements back to the machine. The key manager
// and the worker share the process and its processors.
//
// installs/s is by the clock, installs/cpu-s by the processor time of both
// ends, which other load on the machine does not change. The aim is 18,500
// installs/s: 50 times the 370/s at which the OPI project provisioned a
// million tunnels.
func BenchmarkInstall10000(b *testing.B) {
	var cpu time.Duration
	for b.Loop() {
		b.StopTimer()
		r, w := newRig(b), newWorker(b)
		r.report = time.Second // as workerd does
		r.serve()
		_, stop := r.attach(w)
		eventually(b, "attached", r.attached)
		before := processorTime(b)
		b.StartTimer()
		if _, err := r.initiate(ruleMany); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		cpu += processorTime(b) - before
		if n := len(w.Inventory()); n != 2*manyPairs {
			b.Fatalf("%d SAs in the worker, want %d", n, 2*manyPairs)
		}
		stop()
		r.stopServer()
		r.Engine.Close()
		b.StartTimer()
	}
	b.ReportMetric(float64(2*manyPairs*b.N)/b.Elapsed().Seconds(), "installs/s")
	b.ReportMetric(float64(2*manyPairs*b.N)/cpu.Seconds(), "installs/cpu-s")
}

func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
