package etcd_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"github.com/testudo-ipsec/testudo/policyd/store"
	"github.com/testudo-ipsec/testudo/policyd/store/etcd"
	"github.com/testudo-ipsec/testudo/policyd/store/etcd/embedded"
	"github.com/testudo-ipsec/testudo/policyd/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, dir string, log *slog.Logger) *embedded.Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	s, err := embedded.Start(ctx, embedded.Config{Dir: dir, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func open(t *testing.T, c *clientv3.Client, prefix string) *etcd.Store {
	t.Helper()
	s, err := etcd.Open(t.Context(), c, prefix)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStore(t *testing.T) {
	server := start(t, t.TempDir(), nil)
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	var stores atomic.Int64
	storetest.Run(t, func(t *testing.T) storetest.Opened {
		c := server.Client()
		return storetest.Opened{
			Store: open(t, c, fmt.Sprintf("/testudo/test-%d", stores.Add(1))),
			Compact: func(revision uint64) {
				if _, err := c.Compact(t.Context(), int64(revision), clientv3.WithCompactPhysical()); err != nil {
					t.Error(err)
				}
			},
			Noise: func() {
				if _, err := c.Put(t.Context(), "/testudo/other", "x"); err != nil {
					t.Error(err)
				}
			},
		}
	})
}

// What was written is there after a restart, under the same cluster and epoch;
// a store made anew in another directory is told apart by its epoch.
func TestEmbeddedRestart(t *testing.T) {
	dir := t.TempDir()
	server := start(t, dir, nil)
	s := open(t, server.Client(), "/testudo/policy")
	empty, err := s.Get(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	v, err := s.Put(t.Context(), store.Change{Base: empty.Version, Put: []store.Document{{Key: store.Key{Kind: "Node", Name: "a"}, Text: []byte("text")}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}

	server = start(t, dir, nil)
	got, err := open(t, server.Client(), "/testudo/policy").Get(t.Context(), 0)
	if err != nil || got.Version != v || len(got.Documents) != 1 || string(got.Documents[0].Text) != "text" {
		t.Errorf("after a restart: got %+v, %v, want version %s", got, err, v)
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}

	server = start(t, t.TempDir(), nil)
	fresh, err := open(t, server.Client(), "/testudo/policy").Get(t.Context(), 0)
	if err != nil || fresh.Version.Epoch <= v.Epoch {
		t.Errorf("a new store: got %s, %v, want an epoch after that of %s", fresh.Version, err, v)
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
}

// The embedded member is reachable from inside the process only, and says
// nothing while all is well.
func TestEmbeddedListensNowhereAndIsQuiet(t *testing.T) {
	before := sockets(t)
	var log bytes.Buffer
	server := start(t, t.TempDir(), slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelError})))
	if after := sockets(t); after != before {
		t.Errorf("listening sockets: %d before, %d with etcd; want none more", before, after)
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	if log.Len() > 0 {
		t.Errorf("logged at level error:\n%s", log.String())
	}
}

// sockets counts the sockets of this process that listen, TCP and unix.
func sockets(t *testing.T) (n int) {
	t.Helper()
	l, err := net.Listen("unix", t.TempDir()+"/probe") // the count must be able to be above zero
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	mine := map[string]bool{}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc: cannot list this process's sockets")
	}
	for _, fd := range fds {
		if s, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(s, "socket:[") {
			mine[strings.TrimSuffix(strings.TrimPrefix(s, "socket:["), "]")] = true
		}
	}
	for _, table := range []struct {
		file, listening string
		state, inode    int
	}{{"tcp", "0A", 3, 9}, {"tcp6", "0A", 3, 9}, {"unix", "00010000", 3, 6}} {
		data, err := os.ReadFile("/proc/self/net/" + table.file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			f := strings.Fields(line)
			if len(f) > table.inode && f[table.state] == table.listening && mine[f[table.inode]] {
				n++
			}
		}
	}
	if n == 0 {
		t.Fatal("the probe's own listening socket was not found")
	}
	return n
}
