// Package static serves pre-shared keys, certificates and trust anchors from files
// in one folder: the store that needs no other system. Each time something is asked
// for its files are looked at, and read when they have changed, so a changed file
// is in force at once; there is nothing to reload.
//
// A file of a pre-shared key holds one key: text, or "hex:" or "base64:" and digits, with or
// without one trailing newline. To rotate web-db.psk, copy it to
// web-db.psk.previous and rename a new file to web-db.psk: both keys are
// offered, newest first, until web-db.psk.previous is deleted.
//
// A credential "file:web-1" is web-1.pem, certificates with the leaf first, and
// web-1-key.pem, the private key: PKCS #8, or the older forms of RSA and ECDSA
// keys, not encrypted. Trust anchors "file:fleet-ca.pem" are the certificates of
// that file, and the CRLs of fleet-ca.crl beside it.
//
// The folder must be closed to writers other than its owner, and so must
// certificates; a key is closed to everybody but its owner (mode 0600 or 0400). Symbolic links are followed
// inside the folder only, which is how Kubernetes mounts secrets; set
// defaultMode: 0400 there.
package static
