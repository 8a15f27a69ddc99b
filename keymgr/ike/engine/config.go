package engine

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/cred"
	"github.com/testudo-ipsec/testudo/keymgr/ike"
)

// Machines makes the machines of one IKE version. Its methods are called on a
// shard's goroutine and must not block.
type Machines interface {
	// Initiator makes a machine for a peer profile of the policy. It does
	// nothing until the first CreateChild.
	Initiator(env ike.Env, policy *ipsec.NodePolicy, peer string, path ike.Path) (ike.Machine, error)
	// Responder makes a machine that waits for IKE_SA_INIT. It picks one of the
	// candidate profiles, named in the order of the policy, by the peer's identity.
	Responder(env ike.Env, policy *ipsec.NodePolicy, candidates []string, path ike.Path) (ike.Machine, error)
	// Wake makes a responder again that rested; any of the profiles may be gone.
	Wake(env ike.Env, policy *ipsec.NodePolicy, candidates []string, b []byte) (ike.Machine, error)
	// Restore reads back a machine that saved itself. Its first event is Restored.
	Restore(env ike.Env, b []byte) (ike.Machine, error)
}

// Secrets finds pre-shared keys. Calls are concurrent and may take long; ctx
// carries Config.SecretTimeout.
type Secrets interface { // cred.PSKs is one
	// PSK returns the secrets behind a reference, best (newest) first.
	PSK(ctx context.Context, ref string) ([]ipsec.Secret, error)
}

// Config is what an engine needs and its bounds. Zero bounds take the default
// written behind them.
type Config struct {
	Machines Machines
	Secrets  Secrets
	// Certificates may be nil: then peers with certificates cannot be served.
	Certificates cred.Certificates
	Store        Store // what outlives the process; nil: nothing does. New takes it over
	// CrashSecrets are what tokens of quick crash detection are made from (RFC 6290),
	// newest first: of the fleet, so that any key manager can make them. Empty: none.
	CrashSecrets []ipsec.Secret
	Rand         io.Reader    // crypto/rand; must be safe for concurrent use
	Log          *slog.Logger // discard

	Shards        int           // GOMAXPROCS
	Inbox         int           // datagrams waiting per shard: 4096
	SecretWorkers int           // concurrent lookups of secrets and certificates: 32
	SecretTimeout time.Duration // of one lookup: 5 s
	PeerQueue     int           // slow jobs waiting per remote address of a node: 64
	PoolQueue     int           // slow jobs waiting in all, per pool: 16384

	HalfOpenRest         int           // half-open machines before more are kept as octets: 256; below 0 all are
	HalfOpenCookie       int           // half-open machines before cookies are asked for: 512
	HalfOpenMax          int           // and before requests are dropped: 32768
	HalfOpenPrefixCookie int           // the same per remote /24 or /64: 64
	HalfOpenPrefixMax    int           // 1024
	HalfOpenTimeout      time.Duration // a responder must be established by then: 60 s

	RetryMin time.Duration // back-off after a failure, doubling with jitter: 1 s
	RetryMax time.Duration // 5 min
	Drain    time.Duration // a replaced SA goes on working this long: 30 s
	Jitter   time.Duration // spread of negotiations after a restart: 30 s
	Detached time.Duration // how long installs wait for a worker that went away: 10 s
}
