// Package pki judges certificate chains for IKE (RFC 4945, RFC 5280), and finds
// our own credentials in the stores behind it.
//
// A chain is believed in steps, each refusal with a Why of its own: it is within
// the bounds; it leads to an anchor the policy names, through signatures and keys
// that are strong enough; dates, basic constraints, path lengths and name
// constraints hold (crypto/x509 does these); key usage and extended key usage
// allow IKE; the leaf holds the identity of the ID payload, and the policy accepts
// that identity; and, when the policy asks, nothing in it is revoked.
//
// Nothing is fetched for a chain that has not been verified, and only from URLs
// below the policy's own list; redirects do not lead out of it. CRLs that lie
// beside the trust anchors are used first. Answers are kept until they end,
// bounded in number; one that is being fetched is awaited by all who need it.
//
// Limits: OCSP answers signed with Ed25519 or RSASSA-PSS are not read
// (golang.org/x/crypto/ocsp), so such an authority needs CRLs; no delta CRLs,
// indirect CRLs or CRLs of some reasons only; directoryName constraints are
// refused, when critical, as crypto/x509 does not enforce them; a certificate is
// not looked up by URL (RFC 7296 §3.6, Hash and URL).
package pki
