package cred

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// Router sends each reference to the store of its scheme.
type Router map[string]PSKs

// PSK implements PSKs.
func (r Router) PSK(ctx context.Context, ref string) ([]ipsec.Secret, error) {
	parsed, err := ParseRef(ref)
	if err != nil {
		return nil, err
	}
	store, ok := r[parsed.Scheme]
	if !ok {
		have := strings.Join(slices.Sorted(maps.Keys(r)), ", ")
		return nil, Errorf(Invalid, ref, "this key manager is not configured for %s: references (it has: %s)", parsed.Scheme, have)
	}
	return store.PSK(ctx, ref)
}
