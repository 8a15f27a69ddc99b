// Package suite is the cryptography of IKE, selected by ipsec.Transform: the
// pseudorandom functions (PRF), integrity (Integ), protection of the Encrypted
// payload (Cipher), key exchange (KEMethod) and the IKEv2 key schedule
// (keymat_v2.go). Algorithms are rows of a table; each family has one
// constructor, which refuses a transform it has no row for.
//
// What must survive a restart is a plain value: IKEKeys, KeyPair and the IV
// counter of a Cipher. PRF, Integ and Cipher are derived from those and are
// built again after a read.
//
// Types that hold keys keep them in exported ipsec.Secret fields, or two pointers
// away. fmt does not call the Format method of an unexported field, so that a
// Secret there would show its octets; and for a verb that does not fit, such as
// %s, it follows one pointer and prints what that points to.
//
// Limitations:
//   - ML-KEM encapsulation draws from the system's random source, not from the
//     reader it is given: crypto/mlkem takes none.
//   - Copies of keys inside libraries (hash states, the tables of an
//     exponentiation) are not wiped.
package suite
