package pki

import (
	"fmt"

	"github.com/testudo-ipsec/testudo/keymgr/cred"
)

// Why is the constant reason of a refusal: errors.Is finds it in the error, and
// Stats counts by it. The error's text adds what was got, what was wanted and
// what to do.
type Why string

func (w Why) Error() string { return string(w) }

// The reasons, in the order in which they are looked for.
const (
	WhyMalformed         Why = "the certificates cannot be read"
	WhyTooMany           Why = "the certificates exceed the bounds"
	WhyNoAnchor          Why = "the trust anchors cannot be had"
	WhyWeakKey           Why = "a key is too weak, or of no kind that is supported"
	WhyWeakSignature     Why = "a certificate is signed with a weak algorithm"
	WhySelfSigned        Why = "the certificate is self-signed and not a trust anchor"
	WhyUnknownAuthority  Why = "the certificate was not issued below a trust anchor"
	WhyExpired           Why = "a certificate has expired"
	WhyNotYetValid       Why = "a certificate is not valid yet"
	WhyNotAuthority      Why = "a certificate was issued by one that is no authority"
	WhyPathLength        Why = "the chain is longer than an authority in it allows"
	WhyNameConstraint    Why = "a name is outside what an authority in the chain may certify"
	WhyPolicy            Why = "a certificate policy that the chain requires is not met"
	WhyCriticalExtension Why = "a certificate has a critical extension that is not supported"
	WhyKeyUsage          Why = "the certificate's key usage does not allow signatures"
	WhyExtKeyUsage       Why = "the certificate's extended key usage does not allow IKE"
	WhyIdentityKind      Why = "the identity is of a kind that no certificate proves"
	WhyIdentity          Why = "the certificate does not hold the peer's identity"
	WhyPeerIdentity      Why = "the peer's identity is not one that the policy accepts"
	WhyRevoked           Why = "a certificate is revoked"
	WhyStatusUnknown     Why = "the revocation status cannot be had"
)

// Whys are all of them.
var Whys = []Why{
	WhyMalformed, WhyTooMany, WhyNoAnchor, WhyWeakKey, WhyWeakSignature, WhySelfSigned, WhyUnknownAuthority, WhyExpired, WhyNotYetValid,
	WhyNotAuthority, WhyPathLength, WhyNameConstraint, WhyPolicy, WhyCriticalExtension, WhyKeyUsage, WhyExtKeyUsage, WhyIdentityKind, WhyIdentity,
	WhyPeerIdentity, WhyRevoked, WhyStatusUnknown,
}

// refuse makes the error of a refusal.
func refuse(why Why, format string, args ...any) *cred.Error {
	return &cred.Error{Kind: cred.Refused, Why: string(why) + ": " + fmt.Sprintf(format, args...), Err: why}
}

// unknown makes the error of something that cannot be told now.
func unknown(why Why, format string, args ...any) *cred.Error {
	e := refuse(why, format, args...)
	e.Kind = cred.Unavailable
	return e
}
