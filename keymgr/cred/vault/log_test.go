package vault_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

var quiet = slog.New(slog.DiscardHandler)

// journal keeps the log, for what must not be in it, and announces each line,
// for tests that wait for something to happen.
type journal struct {
	mu    sync.Mutex
	text  strings.Builder
	lines chan string
}

func newJournal() *journal { return &journal{lines: make(chan string, 1000)} }

func (j *journal) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(j, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	j.text.Write(b)
	j.mu.Unlock()
	j.lines <- string(b)
	return len(b), nil
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// await waits for a line that contains what.
func (j *journal) await(t *testing.T, what string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		select {
		case line := <-j.lines:
			if strings.Contains(line, what) {
				return
			}
		case <-ctx.Done():
			t.Fatalf("the log never said %q", what)
		}
	}
}

// clock is a clock that a test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Now()} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}
