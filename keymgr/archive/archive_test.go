package archive_test

import (
	"bytes"
	"testing"

	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/archive"
	"github.com/testudo-ipsec/testudo/keymgr/archive/archivetest"
)

func again[T any](each func(*archive.Coder, *T)) func(*T) (*T, error) {
	return func(v *T) (*T, error) {
		w := archive.Writer(nil)
		each(w, v)
		if err := w.Done(); err != nil {
			return nil, err
		}
		back := new(T)
		r := archive.Reader(w.Octets())
		each(r, back)
		return back, r.Done()
	}
}

func fresh[T any]() *T { return new(T) }

func TestNoFieldIsForgotten(t *testing.T) {
	archivetest.EveryField(t, fresh[ipsec.SA], again(archive.SA), nil)
	archivetest.EveryField(t, fresh[ipsec.Rule], again(archive.Rule), nil)
	archivetest.EveryField(t, fresh[ipsec.Peer], again(archive.Peer), nil)
	archivetest.EveryField(t, fresh[ipsec.Flow], again(archive.Flow), nil)
}

// What is written ends within a field wherever it is cut.
func TestCutShort(t *testing.T) {
	w := archive.Writer(nil)
	archive.SA(w, &ipsec.SA{ID: 7, Rule: "r", EncrKey: ipsec.CopySecret([]byte("0123456789abcdef"))})
	for n := range w.Octets() {
		r := archive.Reader(w.Octets()[:n])
		if archive.SA(r, new(ipsec.SA)); r.Done() == nil {
			t.Fatalf("%d of %d octets were taken for all of them", n, len(w.Octets()))
		}
	}
	r := archive.Reader(append(w.Octets(), 0))
	if archive.SA(r, new(ipsec.SA)); r.Done() == nil {
		t.Fatal("one octet too many was not noticed")
	}
}

// Nothing that is read panics or allocates more than its size allows, and what is
// accepted is written again as it was.
func FuzzSA(f *testing.F) {
	w := archive.Writer(nil)
	archive.SA(w, &ipsec.SA{ID: 1, Selectors: make([]ipsec.Selector, 2), Encap: &ipsec.Encap{LocalPort: 4500}})
	f.Add(w.Octets())
	f.Fuzz(func(t *testing.T, b []byte) {
		r := archive.Reader(b)
		var v ipsec.SA
		archive.SA(r, &v)
		if r.Done() != nil {
			return
		}
		w := archive.Writer(nil)
		archive.SA(w, &v)
		r = archive.Reader(w.Octets())
		var v2 ipsec.SA
		archive.SA(r, &v2)
		w2 := archive.Writer(nil)
		if archive.SA(w2, &v2); r.Done() != nil || !bytes.Equal(w.Octets(), w2.Octets()) {
			t.Fatalf("%x was read, and comes out as %x and then %x", b, w.Octets(), w2.Octets())
		}
	})
}
