package engine

import (
	"context"
	"errors"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
	"github.com/testudo-ipsec/testudo/keymgr/push"
)

// ErrClosed: the engine was closed.
var ErrClosed = errors.New("engine is closed")

// Engine runs the IKE machines of all nodes. Its methods may be called from
// any goroutine.
type Engine struct{ cfg Config }

// New starts an engine.
func New(cfg Config) *Engine { return &Engine{cfg: cfg.withDefaults()} }

// Close stops the engine and its goroutines. It sends no deletes and removes
// no SA: workers go on with what they have.
func (e *Engine) Close() {}

// SetPolicy replaces a node's policy; nil takes it away. Only machines whose
// peer profile or rules changed hear of it.
func (e *Engine) SetPolicy(node string, p *ipsec.NodePolicy) {}

// Attach begins the session of a worker that said hello. A session of the same
// node that is still open is closed. The link may be used before Attach returns.
func (e *Engine) Attach(hello push.Hello, link push.Link) (*Session, error) { return nil, ErrClosed }

// Session is one attached worker.
type Session struct{}

// Handle takes one report of the worker, in the order in which they came. It
// does not block. One goroutine calls it.
func (s *Session) Handle(r push.Report) {}

// Close says that the worker's stream is gone. Its SAs stay desired.
func (s *Session) Close() {}

// List returns the IKE SAs that match, sorted by node, peer and age.
func (e *Engine) List(ctx context.Context, f Filter) ([]IKESA, error) { return nil, ErrClosed }

// Workers returns all workers seen, sorted by node.
func (e *Engine) Workers() []Worker { return nil }

// Initiate negotiates for a rule and waits for its CHILD SA; one that is up
// already is returned at once. A failed negotiation is a *FailedError.
func (e *Engine) Initiate(ctx context.Context, node, rule string) (ike.Child, error) {
	return ike.Child{}, ErrClosed
}

// Rekey replaces the CHILD SA with f.Child, else the CHILD SAs of f.Rule, else
// the IKE SAs that match. It returns how many were asked to; 0 is no error.
func (e *Engine) Rekey(ctx context.Context, f Filter) (int, error) { return 0, ErrClosed }

// Terminate closes what f selects, as Rekey selects.
func (e *Engine) Terminate(ctx context.Context, f Filter, why string) (int, error) {
	return 0, ErrClosed
}

// Watch returns events as they happen until ctx ends; then the channel is
// closed. A subscriber that does not keep up loses events (Stats counts them).
func (e *Engine) Watch(ctx context.Context) <-chan Event { return nil }

// Failures returns the latest failures, newest first, of a peer (profile name,
// remote address or identity) and node; empty for all.
func (e *Engine) Failures(node, peer string) []Failure { return nil }

// Stats returns the counters.
func (e *Engine) Stats() Stats { return Stats{} }

// FailedError is a negotiation that came to nothing.
type FailedError struct{ ike.Failure }

func (e *FailedError) Error() string { return e.Why }
