package archive

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// MaxOctets bounds one string of octets: an IKE message at most.
const MaxOctets = 1 << 16

// ErrVersion: it was written by a program that has another layout.
var ErrVersion = errors.New("archive: it has another layout")

// errShort: the octets end within a field.
var errShort = errors.New("archive: it ends within a field")

// Coder is one pass over a value.
type Coder struct {
	b       []byte // written so far, or left to read
	reading bool
	err     error
}

// Writer appends to b.
func Writer(b []byte) *Coder { return &Coder{b: b} }

// Reader reads b. What it reads does not alias b.
func Reader(b []byte) *Coder { return &Coder{b: b, reading: true} }

// Reading tells the direction, for the few places where it matters.
func (c *Coder) Reading() bool { return c.reading }

// Octets is what was written.
func (c *Coder) Octets() []byte { return c.b }

// Err is the first error.
func (c *Coder) Err() error { return c.err }

// Done is the error of a whole pass: when reading, nothing may be left.
func (c *Coder) Done() error {
	if c.err == nil && c.reading && len(c.b) != 0 {
		c.Fail("%d octets are left over", len(c.b))
	}
	return c.err
}

// Fail records an error that only the caller can see.
func (c *Coder) Fail(format string, a ...any) {
	if c.err == nil {
		c.err = fmt.Errorf("archive: "+format, a...)
	}
}

// Version writes want, and reads no other.
func (c *Coder) Version(want uint8) {
	got := want
	Num(c, &got)
	if c.err == nil && got != want {
		c.err = fmt.Errorf("%w: version %d, this program reads %d", ErrVersion, got, want)
	}
}

type unsigned interface {
	~uint8 | ~uint16 | ~uint32 | ~uint64
}

// Num is an unsigned number.
func Num[T unsigned](c *Coder, v *T) {
	switch {
	case c.err != nil:
	case !c.reading:
		c.b = binary.AppendUvarint(c.b, uint64(*v))
	default:
		x, n := binary.Uvarint(c.b)
		switch {
		case n <= 0:
			c.err = errShort
		case uint64(T(x)) != x:
			c.Fail("%d does not fit into %T", x, *v)
		default:
			*v, c.b = T(x), c.b[n:]
		}
	}
}

type signed interface {
	~int | ~int64
}

// Int is a signed number.
func Int[T signed](c *Coder, v *T) {
	switch {
	case c.err != nil:
	case !c.reading:
		c.b = binary.AppendVarint(c.b, int64(*v))
	default:
		x, n := binary.Varint(c.b)
		if n <= 0 {
			c.err = errShort
			return
		}
		*v, c.b = T(x), c.b[n:]
	}
}

// Bool is a truth value.
func (c *Coder) Bool(v *bool) {
	var n uint8
	if *v {
		n = 1
	}
	if Num(c, &n); c.reading && c.err == nil {
		if n > 1 {
			c.Fail("%d is no truth value", n)
		}
		*v = n == 1
	}
}

// length writes n, or reads a length that is at most bound and, when each of as
// many things takes at least one octet, not more than what is left.
func (c *Coder) length(n, bound int) int {
	v := uint64(n)
	if Num(c, &v); c.err != nil {
		return 0
	}
	if v > uint64(bound) || c.reading && v > uint64(len(c.b)) {
		c.Fail("a length of %d, want at most %d and no more than follows", v, bound)
		return 0
	}
	return int(v)
}

// Bytes are octets; none read as nil.
func (c *Coder) Bytes(v *[]byte) {
	n := c.length(len(*v), MaxOctets)
	switch {
	case c.err != nil:
	case !c.reading:
		c.b = append(c.b, *v...)
	case n == 0:
		*v = nil
	default:
		*v = append([]byte(nil), c.b[:n]...)
		c.b = c.b[n:]
	}
}

// String is text, or octets in a string.
func (c *Coder) String(v *string) {
	n := c.length(len(*v), MaxOctets)
	switch {
	case c.err != nil:
	case !c.reading:
		c.b = append(c.b, *v...)
	default:
		*v = string(c.b[:n])
		c.b = c.b[n:]
	}
}

// Secret is key material.
func (c *Coder) Secret(v *ipsec.Secret) {
	b := v.Reveal()
	if c.Bytes(&b); c.reading && c.err == nil {
		*v = ipsec.NewSecret(b)
	}
}

// Time keeps nanoseconds, and the zero time. Read back it has no monotonic
// part, which would mean nothing to another process.
func (c *Coder) Time(v *time.Time) {
	set := !v.IsZero()
	if c.Bool(&set); !set || c.err != nil {
		if c.reading {
			*v = time.Time{}
		}
		return
	}
	n := v.UnixNano()
	if Int(c, &n); c.reading && c.err == nil {
		*v = time.Unix(0, n)
	}
}

// Addr is an address without a zone, or none.
func (c *Coder) Addr(v *netip.Addr) {
	b := v.AsSlice()
	if c.Bytes(&b); !c.reading || c.err != nil {
		return
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok && len(b) != 0 {
		c.Fail("an address of %d octets", len(b))
	}
	*v = a
}

// AddrPort is an address and a port.
func (c *Coder) AddrPort(v *netip.AddrPort) {
	a, p := v.Addr(), v.Port()
	c.Addr(&a)
	if Num(c, &p); c.reading {
		*v = netip.AddrPortFrom(a, p)
	}
}

// Slice is a list of at most bound elements; an empty one is read as nil.
func Slice[T any](c *Coder, v *[]T, bound int, each func(*Coder, *T)) {
	n := c.length(len(*v), bound)
	if c.reading {
		*v = nil
		if n > 0 && c.err == nil {
			*v = make([]T, n)
		}
	}
	for i := range *v {
		if c.err != nil {
			return
		}
		each(c, &(*v)[i])
	}
}

// Ptr is a value that may be absent.
func Ptr[T any](c *Coder, v **T, each func(*Coder, *T)) {
	set := *v != nil
	c.Bool(&set)
	if c.reading {
		*v = nil
		if set && c.err == nil {
			*v = new(T)
		}
	}
	if *v != nil && c.err == nil {
		each(c, *v)
	}
}
