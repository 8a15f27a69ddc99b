package credtest

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// Leak fails the test when v shows one of the suite's keys, or one of more, in
// any format: plainly, in hexadecimal, in base64 or as a list of octets.
func Leak(t *testing.T, v any, more ...string) {
	t.Helper()
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&out, verb+"\n", v)
	}
	for e, ok := v.(error); ok && e != nil; {
		fmt.Fprintf(&out, "%s %#v\n", e, e)
		u, is := e.(interface{ Unwrap() error })
		if ok = is; ok {
			e = u.Unwrap()
		}
	}
	if b, err := json.Marshal(v); err == nil {
		out.Write(b)
	}
	slog.New(slog.NewTextHandler(&out, nil)).Info("", "v", v)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("", "v", v)

	text := out.String()
	for i, key := range append([]string{first, second, third, weak}, more...) {
		for what, form := range map[string]string{
			"plainly":        key,
			"in hexadecimal": hex.EncodeToString([]byte(key)),
			"in base64":      base64.StdEncoding.EncodeToString([]byte(key))[:len(key)],
			"octet by octet": strings.Trim(fmt.Sprint([]byte(key)), "[]"),
			"as Go octets":   strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", []byte(key)), "[]byte{"), "}"),
		} {
			if strings.Contains(text, form) {
				t.Errorf("printing a %T shows key %d %s", v, i, what)
			}
		}
	}
}
