package wire

import (
	"bytes"
	"encoding/hex"
	"reflect"
	"testing"
	"time"
)

// RFC 7427 appendix B.1: an AUTH payload of sha1WithRSAEncryption starts
// "0e00 0000 0f30 0d06 092a 8648 86f7 0d01 0105 0500" after its generic header.
func TestSignatureAuthIsLaidOutAsInTheRFC(t *testing.T) {
	der, _ := hex.DecodeString("300d06092a864886f70d0101050500")
	p := &Auth{Method: AuthSignature, Data: SignatureAuth{Algorithm: der, Signature: []byte{0xaa, 0xbb}}.Append(nil)}
	want, _ := hex.DecodeString("0e0000000f300d06092a864886f70d0101050500aabb")
	if got := p.appendBody(nil); !bytes.Equal(got, want) {
		t.Fatalf("got %x, want %x", got, want)
	}
	s, err := ParseSignatureAuth(p.Data)
	if err != nil || !bytes.Equal(s.Algorithm, der) || !bytes.Equal(s.Signature, []byte{0xaa, 0xbb}) {
		t.Errorf("reads back as %+v, %v", s, err)
	}
	for name, b := range map[string][]byte{"nothing": {}, "no algorithm": {0, 1}, "no signature": {1, 2}, "cut": {200, 1, 2}} {
		if s, err := ParseSignatureAuth(b); err == nil {
			t.Errorf("%s: read as %+v", name, s)
		}
	}
}

func TestAuthenticationNotifiesReadBackAsWritten(t *testing.T) {
	hs := []HashAlgorithm{HashSHA256, HashIdentity}
	if n := HashNotify(hs); !bytes.Equal(n.Data, []byte{0, 2, 0, 5}) || !reflect.DeepEqual(n.Hashes(), hs) {
		t.Errorf("hashes %x read back as %v", n.Data, n.Hashes())
	}
	if d, ok := LifetimeNotify(8 * time.Hour).Lifetime(); !ok || d != 8*time.Hour {
		t.Errorf("lifetime reads back as %v, %v", d, ok)
	}
	if id, ok := PPKNotify("alice").PPKID(); !ok || id != "alice" {
		t.Errorf("PPK_ID reads back as %q, %v", id, ok)
	}
	as := []Announcement{{Method: AuthSharedKey}, {Method: AuthECDSA256, CertLink: 2}, {Method: AuthSignature, CertLink: 1, Algorithm: []byte{0x30, 5}}}
	n := AnnounceNotify(as)
	if want := []byte{2, 2, 3, 9, 2, 5, 14, 1, 0x30, 5}; !bytes.Equal(n.Data, want) || !reflect.DeepEqual(n.Announcements(), as) {
		t.Errorf("got %x, reads back as %+v", n.Data, n.Announcements())
	}
}

func TestDamagedAuthenticationNotifiesCountAsNotSent(t *testing.T) {
	for _, b := range [][]byte{{0}, {1, 2}, {3, 9}, {2, 2, 9}, bytes.Repeat([]byte{2, 2}, maxAnnouncements+1)} {
		if as := (&Notify{Data: b}).Announcements(); as != nil {
			t.Errorf("%x reads as %+v", b, as)
		}
	}
	if hs := (&Notify{Data: []byte{0, 2, 0}}).Hashes(); hs != nil {
		t.Errorf("half a hash reads as %v", hs)
	}
	if got := len((&Notify{Data: make([]byte, 60000)}).Hashes()); got != maxHashes {
		t.Errorf("read %d hashes, want at most %d", got, maxHashes)
	}
	for _, b := range [][]byte{{}, {PPKFixed}, {1, 'a'}} {
		if id, ok := (&Notify{Data: b}).PPKID(); ok {
			t.Errorf("PPK_ID %x reads as %q", b, id)
		}
	}
	if _, ok := (&Notify{Data: []byte{1}}).Lifetime(); ok {
		t.Error("a lifetime of one octet was read")
	}
}

// FuzzAuthentication: whatever a peer writes into CERT, CERTREQ, AUTH of method
// 14 and the notifies about authentication, reading it ends without a panic, and
// within the bounds.
func FuzzAuthentication(f *testing.F) {
	f.Add(uint8(TypeCERT), []byte{4, 0x30, 0x82})
	f.Add(uint8(TypeCERTREQ), append([]byte{4}, make([]byte, 40)...))
	f.Add(uint8(TypeAUTH), []byte{14, 0, 0, 0, 2, 0x30, 0, 1})
	f.Add(uint8(TypeNotify), []byte{0, 0, 0x40, 0x3b, 2, 2, 3, 9, 1})
	f.Fuzz(func(t *testing.T, typ uint8, b []byte) {
		p, err := parsePayload(PayloadType(typ), b, new([]Notify))
		if err != nil {
			return
		}
		switch p := p.(type) {
		case *Cert:
			if len(p.Data) > MaxCertOctets {
				t.Fatalf("%d octets", len(p.Data))
			}
		case *CertReq:
			if len(p.Authorities) > MaxAuthorities {
				t.Fatalf("%d authorities", len(p.Authorities))
			}
		case *Auth:
			if s, err := ParseSignatureAuth(p.Data); err == nil && !bytes.Equal(s.Append(nil), p.Data) {
				t.Fatalf("%x reads as %+v", p.Data, s)
			}
		case *Notify:
			if len(p.Announcements()) > maxAnnouncements || len(p.Hashes()) > maxHashes {
				t.Fatal("over the bound")
			}
			p.PPKID()
			p.Lifetime()
		}
	})
}
