// Package cred finds secrets by reference. A policy names a pre-shared key as
// "file:web-db.psk" or "vault:secret/testudo/psk/web-db"; this package says
// what a reference may look like (Ref), what may go wrong (Error, Kind), how
// strong a key must be (DecodePSK), and how one is kept at hand while the place
// that holds it is away (Cache).
//
// The stores are in static (files) and vault (HashiCorp Vault, KV version 2).
// Both pass the suite in credtest, and a Router puts them behind one PSKs.
//
// Limits: the cache lives in memory, so a key manager that starts while Vault
// is down knows no secret until Vault is back.
package cred
