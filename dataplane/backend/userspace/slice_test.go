package userspace

import (
	"os"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

func TestThreadsGetTheirSlices(t *testing.T) {
	if err := setSlices(); err != nil {
		t.Skip(err)
	}
	// A thread made now has it too.
	made := make(chan int)
	go func() {
		runtime.LockOSThread() // without Unlock: the thread ends with the goroutine
		made <- unix.Gettid()
		<-made
	}()
	late := <-made
	defer close(made)
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	seen := false
	for _, x := range threads {
		id, err := strconv.Atoi(x.Name())
		if err != nil {
			t.Fatal(err)
		}
		a, err := unix.SchedGetAttr(id, 0)
		if err != nil {
			continue // ended since
		}
		seen = seen || id == late
		if a.Runtime != uint64(timeSlice) {
			t.Errorf("thread %d has slices of %d ns, want %d", id, a.Runtime, timeSlice)
		}
	}
	if !seen {
		t.Errorf("thread %d is not among %v", late, threads)
	}
}
