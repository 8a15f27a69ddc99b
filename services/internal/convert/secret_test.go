package convert_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/ipsec"
	ipsecv1 "github.com/testudo-ipsec/testudo/proto/gen/testudo/ipsec/v1"
	"github.com/testudo-ipsec/testudo/services/internal/convert"
)

// What comes out of FromSA may be logged: the SA, and the error. (The message
// may not: protobuf prints the keys, debug_redact or not.)
func TestKeysStayOutOfLogs(t *testing.T) {
	a := netip.MustParseAddr("192.0.2.1")
	const octets = "KEYOCTETS"
	message := func() *ipsecv1.SecurityAssociation {
		return convert.ToSA(&ipsec.SA{
			ID: 1, SPI: 256, Direction: ipsec.Inbound, Mode: ipsec.ModeTunnel, Local: a, Remote: a,
			EncrKey: ipsec.NewSecret([]byte("ENCR" + octets)), IntegKey: ipsec.NewSecret([]byte("INTEG" + octets)),
		})
	}
	for name, change := range map[string]func(*ipsecv1.SecurityAssociation){
		"good":      func(*ipsecv1.SecurityAssociation) {},
		"direction": func(m *ipsecv1.SecurityAssociation) { m.Direction = 9 },
		"address":   func(m *ipsecv1.SecurityAssociation) { m.Local = nil },
		"suite":     func(m *ipsecv1.SecurityAssociation) { m.Suite.Encr = &ipsecv1.Transform{Id: 1 << 20} },
		"selector":  func(m *ipsecv1.SecurityAssociation) { m.Selectors = []*ipsecv1.Selector{{}} },
	} {
		m := message()
		encr := m.EncrKey
		change(m)
		sa, err := convert.FromSA(m)
		if (err == nil) != (name == "good") {
			t.Fatalf("%s: got %v", name, err)
		}
		var b bytes.Buffer
		slog.New(slog.NewJSONHandler(&b, nil)).Info("sa", "sa", sa, "error", err)
		slog.New(slog.NewTextHandler(&b, nil)).Info("sa", "sa", sa, "error", err)
		fmt.Fprintf(&b, "%v %+v %#v %v", sa, sa, sa, err)
		if out := b.String(); strings.Contains(out, octets) || strings.Contains(out, fmt.Sprintf("%x", octets)) {
			t.Errorf("%s: keys in %s", name, out)
		}
		if err != nil && !bytes.Equal(encr, make([]byte, len(encr))) {
			t.Errorf("%s: the keys of a refused SA were not wiped", name)
		}
	}
}
