// Package cred finds secrets and certificates by reference. A policy names a
// pre-shared key as "file:web-db.psk" or "vault:secret/testudo/psk/web-db", a
// certificate as "file:web-1" or "vault:pki/ike#web-1.fleet.example"; this package
// says what a reference may look like (Ref), what may go wrong (Error, Kind), how
// strong a key must be (DecodePSK, CheckKey), and how a secret is kept at hand
// while the place that holds it is away (Cache).
//
// The stores are in static (files) and vault (HashiCorp Vault: KV version 2, PKI).
// Both pass the suites in credtest. A Router puts them behind one PSKs; package pki
// puts them behind one Certificates, and judges what peers send.
//
// Limits: the cache lives in memory, so a key manager that starts while Vault
// is down knows no secret until Vault is back.
package cred
