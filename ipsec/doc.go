// Package ipsec is the vocabulary that every part of Testudo shares: SPIs,
// selectors, transforms, proposals, security associations, policy rules,
// identities and secrets, named as RFC 4301, RFC 4303 and RFC 7296 name them.
//
// It holds plain values with validation, comparison and formatting, and no
// behaviour beyond that. It imports the standard library only.
package ipsec
