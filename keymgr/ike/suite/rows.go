package suite

import (
	"fmt"
	"slices"
	"strings"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// find returns the constructor row and the attribute row of a transform. Both
// must exist: the first makes the algorithm, the second knows its lengths.
func find[R any](kind ipsec.TransformType, t ipsec.Transform, rows map[uint16]R) (R, *ipsec.Algorithm, error) {
	row, ok := rows[t.ID]
	a, known := ipsec.LookupAlgorithm(t)
	if t.Type != kind || !ok || !known {
		var none R
		return none, nil, fmt.Errorf("%s %s is not implemented for IKE; want one of %s", kind, t, strings.Join(namesOf(kind, rows), " "))
	}
	return row, a, nil
}

func namesOf[R any](kind ipsec.TransformType, rows map[uint16]R) []string {
	var out []string
	for _, a := range ipsec.Algorithms() {
		if _, ok := rows[a.ID]; ok && a.Type == kind {
			out = append(out, a.Name)
		}
	}
	slices.Sort(out)
	return out
}

// keyLength refuses a key that does not have the length its algorithm fixes.
func keyLength(what string, a *ipsec.Algorithm, key ipsec.Secret) error {
	if want := a.KeyLen + a.SaltLen; key.Len() != want {
		return fmt.Errorf("%s for %s has %d octets, want %d (key %d, salt %d)", what, a.Name, key.Len(), want, a.KeyLen, a.SaltLen)
	}
	return nil
}
