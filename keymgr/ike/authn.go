package ike

import (
	"github.com/testudo-ipsec/testudo/ipsec"
	"github.com/testudo-ipsec/testudo/keymgr/ike/suite"
)

// Authentication with certificates: what a machine asks, and the answers. All of
// it is slow: files, Vault, CRLs, and signatures.
type (
	// NeedAuthorities asks for the names of trust anchors; Authorities answers.
	NeedAuthorities struct {
		ID    uint64
		Trust []string
	}

	// Authorities answers NeedAuthorities.
	Authorities struct {
		ID   uint64
		Keys [][20]byte // SHA-1 of each SubjectPublicKeyInfo (RFC 7296 §3.7)
		Err  error
	}

	// NeedSignature asks for signatures with the first of Credentials whose key
	// makes one that the peer accepts; Signed answers. A credential that leads to
	// one of Wanted goes before others.
	NeedSignature struct {
		ID          uint64
		Credentials []ipsec.CertificateAuth
		Wanted      [][20]byte // authorities of the peer's CERTREQ
		Accepts     suite.Accepts
		Octets      [][]byte // each is signed, all with one key and scheme
	}

	// Signed answers NeedSignature.
	Signed struct {
		ID     uint64
		Scheme *suite.Scheme
		Auth   [][]byte // the data of an AUTH payload, for each of the Octets
		Chain  [][]byte // DER, leaf first
		Err    error
	}

	// NeedVerification asks whether a chain of certificates proves an identity,
	// by one of Methods, and whether its key made a signature; Verified answers.
	NeedVerification struct {
		ID        uint64
		Chain     [][]byte // DER, leaf first, as the peer sent it
		Identity  ipsec.Identity
		Methods   []ipsec.CertificateAuth
		Scheme    *suite.Scheme
		Octets    []byte
		Signature []byte
	}

	// Verified answers NeedVerification: Err is nil when all of it is true. Unknown
	// says that nobody could tell: a store, or a certificate's status, is away.
	Verified struct {
		ID      uint64
		Err     error
		Unknown bool
	}

	// Reauthenticate says that the ends have to prove themselves anew (RFC 4478):
	// the engine makes a new IKE SA with the CHILD SAs of this one, and then
	// terminates this one. It is not answered; it comes again while this one is there.
	Reauthenticate struct{}
)

func (NeedAuthorities) effect()  {}
func (NeedSignature) effect()    {}
func (NeedVerification) effect() {}
func (Reauthenticate) effect()   {}

func (Authorities) event() {}
func (Signed) event()      {}
func (Verified) event()    {}
