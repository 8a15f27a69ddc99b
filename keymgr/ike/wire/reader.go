package wire

import (
	"encoding/binary"
	"fmt"
)

// Error says why a message is not well formed, and what the peer may be told.
type Error struct {
	Notify NotifyType // INVALID_SYNTAX, UNSUPPORTED_CRITICAL_PAYLOAD or INVALID_MAJOR_VERSION
	Data   []byte     // of the notify: the payload type that is not supported (RFC 7296 §2.5)
	Detail string
}

func (e *Error) Error() string { return fmt.Sprintf("%s: %s", e.Notify, e.Detail) }

func syntax(format string, args ...any) *Error {
	return &Error{Notify: InvalidSyntax, Detail: fmt.Sprintf(format, args...)}
}

// reader takes octets off the front of a slice. After the first failure it
// yields zeros, so that a decoder checks err once, at its end.
type reader struct {
	b       []byte
	payload PayloadType
	part    string // of the payload, as in " proposal"
	err     *Error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = syntax(r.payload.String()+r.part+": "+format, args...)
		r.b = nil
	}
}

func (r *reader) bytes(n int) []byte {
	if r.err != nil || n < 0 || n > len(r.b) {
		r.fail("got %d octets where %d are needed", len(r.b), n)
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) rest() []byte { return r.bytes(len(r.b)) }

func (r *reader) u8() uint8 {
	if b := r.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if b := r.bytes(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.bytes(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// done fails when octets are left over.
func (r *reader) done() *Error {
	if r.err == nil && len(r.b) != 0 {
		r.fail("%d octets left over", len(r.b))
	}
	return r.err
}
