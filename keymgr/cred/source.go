package cred

import (
	"context"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// Source is a store behind a Cache. Each call does its own I/O and is bounded
// in time by itself; errors are *Error.
type Source interface {
	// Read gets the secrets behind ref.
	Read(ctx context.Context, ref string) (Reading, error)
	// Version gets what Reading.Version would be, for less.
	Version(ctx context.Context, ref string) (string, error)
}

// Reading is what a source holds behind one reference.
type Reading struct {
	// Version changes whenever Candidates would; it is compared, never read.
	Version string
	// Candidates are newest first: one to MaxCandidates. The first never ends.
	Candidates []Candidate
}

// Candidate is one version of a secret.
type Candidate struct {
	Secret ipsec.Secret
	// NotAfter ends the overlap of an older version; zero for the newest.
	NotAfter time.Time
}

func (r Reading) wipe() {
	for _, c := range r.Candidates {
		c.Secret.Wipe()
	}
}
