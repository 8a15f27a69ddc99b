package suite

import (
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/testudo-ipsec/testudo/ipsec"
)

// IKEKeys are the seven secrets of an IKEv2 SA (RFC 7296 §2.14). With an AEAD
// SKai and SKar are empty, and SKei and SKer end in the salt (RFC 5282 §7.1).
type IKEKeys struct {
	SKd  ipsec.Secret
	SKai ipsec.Secret
	SKar ipsec.Secret
	SKei ipsec.Secret
	SKer ipsec.Secret
	SKpi ipsec.Secret
	SKpr ipsec.Secret
}

// ChildKeys are the keys of one CHILD SA (RFC 7296 §2.17). "I" protects what
// flows from the initiator of the exchange that made it to the responder, which
// after a rekey need not be the initiator of the IKE SA. An AEAD key has its
// salt after it, as ipsec.SA.EncrKey wants it.
type ChildKeys struct {
	EncrI  ipsec.Secret
	IntegI ipsec.Secret
	EncrR  ipsec.Secret
	IntegR ipsec.Secret
}

// SKEYSEED is that of a first exchange (RFC 7296 §2.14):
//
//	SKEYSEED = prf(Ni | Nr, g^ir)
func SKEYSEED(p PRF, ni, nr []byte, shared ipsec.Secret) ipsec.Secret {
	return ipsec.NewSecret(p.sum(slices.Concat(p.seedNonce(ni), p.seedNonce(nr)), shared.Reveal()))
}

// RekeySKEYSEED is that of an IKE SA rekeyed with CREATE_CHILD_SA (RFC 7296
// §2.18), under the PRF and the SK_d of the old IKE SA. It is also that of each
// additional exchange in IKE_INTERMEDIATE (RFC 9370), where both are the current
// ones.
//
//	SKEYSEED = prf(SK_d (old), g^ir (new) | Ni | Nr)
//
// additional are the secrets of IKE_FOLLOWUP_KE, in order; RFC 9370 appends them.
func RekeySKEYSEED(old PRF, skd, shared ipsec.Secret, ni, nr []byte, additional ...ipsec.Secret) ipsec.Secret {
	seed := exchangeSeed(shared, ni, nr, additional)
	defer clear(seed)
	return ipsec.NewSecret(old.Sum(skd, seed))
}

// exchangeSeed is SK(0) | Ni | Nr | SK(1) | ... | SK(n), which is secret.
func exchangeSeed(shared ipsec.Secret, ni, nr []byte, additional []ipsec.Secret) []byte {
	parts := append(make([][]byte, 0, 3+ipsec.MaxADDKE), shared.Reveal(), ni, nr)
	for _, s := range additional {
		parts = append(parts, s.Reveal())
	}
	return slices.Concat(parts...)
}

// NewIKEKeys derives the secrets of an IKE SA for a suite, in the order of
// RFC 7296 §2.14:
//
//	{SK_d | SK_ai | SK_ar | SK_ei | SK_er | SK_pi | SK_pr}
//	    = prf+(SKEYSEED, Ni | Nr | SPIi | SPIr)
func NewIKEKeys(s ipsec.Suite, skeyseed ipsec.Secret, ni, nr []byte, spiI, spiR uint64) (IKEKeys, error) {
	p, err := NewPRF(s.PRF)
	if err != nil {
		return IKEKeys{}, err
	}
	encr, integ, err := keyLengths(s)
	if err != nil {
		return IKEKeys{}, err
	}
	seed := append(append(make([]byte, 0, len(ni)+len(nr)+2*8), ni...), nr...)
	seed = binary.BigEndian.AppendUint64(seed, spiI)
	seed = binary.BigEndian.AppendUint64(seed, spiR)
	stream, err := p.stream(skeyseed, seed, 3*p.Size()+2*integ+2*encr)
	if err != nil {
		return IKEKeys{}, err
	}
	take := taker(stream)
	return IKEKeys{
		SKd:  take(p.Size()),
		SKai: take(integ),
		SKar: take(integ),
		SKei: take(encr),
		SKer: take(encr),
		SKpi: take(p.Size()),
		SKpr: take(p.Size()),
	}, nil
}

// WithPPK mixes a postquantum preshared key into the secrets of an initial IKE SA
// (RFC 8784 §3). Those that it does not touch are shared with k.
//
//	SK_d  = prf+(PPK, SK_d')
//	SK_pi = prf+(PPK, SK_pi')
//	SK_pr = prf+(PPK, SK_pr')
func (k IKEKeys) WithPPK(p PRF, ppk ipsec.Secret) (IKEKeys, error) {
	if ppk.IsZero() {
		return IKEKeys{}, errEmptyPSK
	}
	var err error
	for _, s := range []*ipsec.Secret{&k.SKd, &k.SKpi, &k.SKpr} {
		if *s, err = p.Plus(ppk, s.Reveal(), p.Size()); err != nil {
			return IKEKeys{}, err
		}
	}
	return k, nil
}

// Ciphers makes the ciphers of both directions: what the initiator of the IKE
// SA seals, and what the responder does.
func (k IKEKeys) Ciphers(s ipsec.Suite) (initiator, responder *Cipher, err error) {
	if initiator, err = NewCipher(s.Encr, s.Integ, k.SKei, k.SKai); err != nil {
		return nil, nil, err
	}
	if responder, err = NewCipher(s.Encr, s.Integ, k.SKer, k.SKar); err != nil {
		return nil, nil, err
	}
	return initiator, responder, nil
}

// Wipe overwrites all seven secrets.
func (k IKEKeys) Wipe() {
	for _, s := range []ipsec.Secret{k.SKd, k.SKai, k.SKar, k.SKei, k.SKer, k.SKpi, k.SKpr} {
		s.Wipe()
	}
}

// NewChildKeys derives the keys of an ESP or AH pair (RFC 7296 §2.17) from the
// IKE SA's PRF and SK_d and the nonces of the exchange that creates it:
//
//	KEYMAT = prf+(SK_d, Ni | Nr)
//	KEYMAT = prf+(SK_d, g^ir (new) | Ni | Nr)   with a key exchange of its own
//
// shared is empty without one; additional is as in RekeySKEYSEED.
func NewChildKeys(p PRF, child ipsec.Suite, skd, shared ipsec.Secret, ni, nr []byte, additional ...ipsec.Secret) (ChildKeys, error) {
	encr, integ, err := keyLengths(child)
	if err != nil {
		return ChildKeys{}, err
	}
	seed := exchangeSeed(shared, ni, nr, additional)
	defer clear(seed)
	keymat, err := p.stream(skd, seed, 2*(encr+integ))
	if err != nil {
		return ChildKeys{}, err
	}
	take := taker(keymat)
	return ChildKeys{EncrI: take(encr), IntegI: take(integ), EncrR: take(encr), IntegR: take(integ)}, nil
}

// Wipe overwrites all four keys.
func (k ChildKeys) Wipe() {
	for _, s := range []ipsec.Secret{k.EncrI, k.IntegI, k.EncrR, k.IntegR} {
		s.Wipe()
	}
}

// keyLengths is how much of the key stream each direction of a suite takes:
// for encryption with the salt, and for integrity. A type that the suite does
// not have takes nothing, but a suite without either, or a cipher without
// integrity, is refused.
func keyLengths(s ipsec.Suite) (encr, integ int, err error) {
	var e, i ipsec.Algorithm
	if s.Encr.Type != 0 {
		a, ok := ipsec.LookupAlgorithm(s.Encr)
		if !ok || a.Type != ipsec.TransformENCR {
			return 0, 0, fmt.Errorf("key length of encryption %s is not known", s.Encr)
		}
		e = *a
	}
	if s.Integ.Type != 0 && s.Integ.ID != ipsec.IntegNone {
		a, ok := ipsec.LookupAlgorithm(s.Integ)
		if !ok || a.Type != ipsec.TransformINTEG {
			return 0, 0, fmt.Errorf("key length of integrity %s is not known", s.Integ)
		}
		i = *a
	}
	switch {
	case e.AEAD && i.KeyLen != 0:
		return 0, 0, fmt.Errorf("%s protects integrity itself; got %s with it", e.Name, i.Name)
	case !e.AEAD && i.KeyLen == 0:
		return 0, 0, fmt.Errorf("suite %s has no integrity protection", s)
	case s.Protocol != ipsec.ProtocolAH && e.Name == "": // NULL is one, with a key of no octets
		return 0, 0, fmt.Errorf("suite %s has no encryption", s)
	case s.Protocol == ipsec.ProtocolAH && e.Name != "":
		return 0, 0, fmt.Errorf("AH encrypts nothing; got %s", e.Name)
	}
	return e.KeyLen + e.SaltLen, i.KeyLen + i.SaltLen, nil
}

// taker hands out consecutive stretches of a key stream, which is theirs afterwards.
func taker(stream []byte) func(n int) ipsec.Secret {
	return func(n int) ipsec.Secret {
		k := ipsec.NewSecret(stream[:n:n])
		stream = stream[n:]
		return k
	}
}

// SignedOctets is what one side signs or MACs (RFC 7296 §2.15): its own
// IKE_SA_INIT message from the first octet of the SPI, the other side's nonce,
// and prf(SK_p, ID') with its own SK_p and the body of its own ID payload.
// IntAuth (RFC 9242 §3.3), when there is one, is appended by the caller.
func SignedOctets(p PRF, message, peerNonce []byte, skp ipsec.Secret, id []byte) []byte {
	return slices.Concat(message, peerNonce, p.Sum(skp, id))
}

// AuthPSK is the AUTH value of a shared secret (RFC 7296 §2.15):
//
//	AUTH = prf(prf(Shared Secret, "Key Pad for IKEv2"), <SignedOctets>)
func AuthPSK(p PRF, psk ipsec.Secret, signed []byte) ([]byte, error) {
	if psk.IsZero() {
		return nil, errEmptyPSK
	}
	pad := p.Sum(psk, keyPad)
	defer clear(pad)
	return p.sum(pad, signed), nil
}

var keyPad = []byte("Key Pad for IKEv2")

// VerifyPSK reports, in constant time, whether auth is the peer's AUTH value.
func VerifyPSK(p PRF, psk ipsec.Secret, signed, auth []byte) bool {
	want, err := AuthPSK(p, psk, signed)
	return err == nil && subtle.ConstantTimeCompare(want, auth) == 1
}

// A secret that could not be read must never become a key that a peer can guess.
var errEmptyPSK = errors.New("shared secret is empty; give it at least one octet")
