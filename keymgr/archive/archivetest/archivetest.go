// Package archivetest finds the fields that an archive forgets.
package archivetest

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"reflect"
	"testing"
	"time"
	"unsafe"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// EveryField changes one field after another of a value that fresh makes, writes
// the value out and reads it back by again, and fails the test when the change is
// gone. Fields of structs, of what pointers lead to, and of the elements of slices
// are all looked at, exported or not. lost names those that are meant to be lost, as
// "Type.field", each with the reason; they are not looked into.
func EveryField[T any](t *testing.T, fresh func() *T, again func(*T) (*T, error), lost map[string]string) {
	t.Helper()
	w := &walk{lost: lost, used: make(map[string]bool)}
	w.value(reflect.ValueOf(fresh()).Elem(), nil, reflect.TypeFor[T]().Name(), nil)
	for _, l := range w.leaves {
		v := fresh()
		want := l.change(reflect.ValueOf(v).Elem())
		back, err := again(v)
		if err != nil {
			t.Errorf("%s: %v", l.name, err)
			continue
		}
		got, ok := l.get(reflect.ValueOf(back).Elem(), false)
		if !ok || !same(got, want) {
			t.Errorf("%s is not saved: it would be lost in a restart. Save it, or add it to this test's list with the reason why not", l.name)
		}
	}
	for name := range lost {
		if !w.used[name] {
			t.Errorf("%s is on the list of what is not saved, and there is no such field", name)
		}
	}
}

// Layout fails the test when what save writes of a value has changed, and its version
// has not. All parts that save does not lose (see EveryField) are set in that value.
// layouts has one row for each version there ever was.
func Layout[T any](t *testing.T, version int, layouts map[int]string, fresh func() *T, save func(*T) []byte, lost map[string]string) {
	t.Helper()
	w := &walk{lost: lost, used: make(map[string]bool)}
	v := fresh()
	w.value(reflect.ValueOf(v).Elem(), nil, reflect.TypeFor[T]().Name(), nil)
	for _, l := range w.leaves {
		l.change(reflect.ValueOf(v).Elem())
	}
	got := fmt.Sprintf("%x", sha256.Sum256(save(v)))[:16]
	switch want, known := layouts[version]; {
	case !known:
		t.Errorf("version %d has no row: add %d: %q, and change none that is there", version, version, got)
	case got != want:
		t.Errorf("the layout is %s, version %d has %s: records of that version would be misread. Raise the version, and add a row (if only what fresh makes has changed, correct the row)", got, version, want)
	}
}

// step leads from a value to a part of it: a field, what a pointer leads to (-1), or
// the first element of a slice (-2) or an array (-3).
type step int

type leaf struct {
	name string
	path []step
}

type walk struct {
	lost   map[string]string
	used   map[string]bool
	leaves []leaf
}

var atoms = map[reflect.Type]bool{
	reflect.TypeFor[netip.Addr](): true, reflect.TypeFor[netip.AddrPort](): true,
	reflect.TypeFor[time.Time](): true, reflect.TypeFor[ipsec.Secret](): true,
}

func (w *walk) value(v reflect.Value, path []step, name string, in []reflect.Type) {
	path = path[:len(path):len(path)]
	typ := v.Type()
	switch {
	case atoms[typ] || typ.Kind() <= reflect.Complex128 || typ.Kind() == reflect.String:
		w.leaves = append(w.leaves, leaf{name, path})
		return
	}
	switch typ.Kind() {
	case reflect.Struct:
		for _, seen := range in {
			if seen == typ {
				return // a value within one of its own type
			}
		}
		in = append(in[:len(in):len(in)], typ)
		for i := range typ.NumField() {
			field := typ.Name() + "." + typ.Field(i).Name
			if _, skip := w.lost[field]; skip {
				w.used[field] = true
				continue
			}
			w.value(open(v.Field(i)), append(path, step(i)), field, in)
		}
	case reflect.Pointer:
		if v.IsNil() {
			v = reflect.New(typ.Elem())
		}
		w.value(v.Elem(), append(path, -1), name, in)
	case reflect.Array:
		w.value(v.Index(0), append(path, -3), name, in)
	case reflect.Slice:
		if v.Len() == 0 {
			v = reflect.MakeSlice(typ, 1, 1)
		}
		w.value(v.Index(0), append(path, -2), name, in)
	default:
		w.leaves = append(w.leaves, leaf{name + " (a " + typ.Kind().String() + ")", path})
	}
}

// open makes an unexported field settable. The value must be addressable.
func open(v reflect.Value) reflect.Value {
	if !v.CanAddr() {
		return v
	}
	return reflect.NewAt(v.Type(), unsafe.Pointer(v.UnsafeAddr())).Elem() //nolint:gosec // a test looks at unexported fields
}

func (l leaf) get(v reflect.Value, grow bool) (reflect.Value, bool) {
	for _, s := range l.path {
		switch s {
		case -1:
			if v.IsNil() {
				if !grow {
					return v, false
				}
				v.Set(reflect.New(v.Type().Elem()))
			}
			v = v.Elem()
		case -2:
			if v.Len() == 0 {
				if !grow {
					return v, false
				}
				v.Set(reflect.MakeSlice(v.Type(), 1, 1))
			}
			v = v.Index(0)
		case -3:
			v = v.Index(0)
		default:
			v = open(v.Field(int(s)))
		}
	}
	return v, true
}

// change gives the part another value, and returns it.
func (l leaf) change(root reflect.Value) reflect.Value {
	v, _ := l.get(root, true)
	switch x := v.Interface().(type) {
	case netip.Addr:
		v.Set(reflect.ValueOf(netip.MustParseAddr("198.51.100.77")))
	case netip.AddrPort:
		v.Set(reflect.ValueOf(netip.MustParseAddrPort("198.51.100.77:7777")))
	case time.Time:
		v.Set(reflect.ValueOf(time.Unix(1800000000, 123)))
	case ipsec.Secret:
		b := append([]byte(nil), x.Reveal()...)
		if len(b) == 0 {
			b = []byte{0}
		}
		b[0]++
		v.Set(reflect.ValueOf(ipsec.NewSecret(b)))
	default:
		switch v.Kind() {
		case reflect.Bool:
			v.SetBool(!v.Bool())
		case reflect.String:
			v.SetString(v.String() + "x")
		case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
			v.SetInt(v.Int() + 1)
		case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
			v.SetUint(v.Uint() + 1)
		}
	}
	// A copy: again may wipe or change what it was given.
	keep := reflect.New(v.Type()).Elem()
	keep.Set(v)
	if s, ok := v.Interface().(ipsec.Secret); ok {
		keep.Set(reflect.ValueOf(s.Clone()))
	}
	return keep
}

func same(a, b reflect.Value) bool {
	switch x := a.Interface().(type) {
	case ipsec.Secret:
		return x.Equal(b.Interface().(ipsec.Secret))
	case time.Time:
		return x.Equal(b.Interface().(time.Time))
	}
	switch a.Kind() {
	case reflect.Func, reflect.Interface, reflect.Map, reflect.Chan:
		return false
	}
	return fmt.Sprint(a.Interface()) == fmt.Sprint(b.Interface())
}
