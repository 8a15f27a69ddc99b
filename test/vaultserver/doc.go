// Command vaultserver is a real HashiCorp Vault server for tests: one core with
// the KV, transit, PKI, AppRole and TLS-certificate backends, on a loopback
// address, with a control channel for faults.
//
// It writes one JSON line when it serves:
//
//	{"address":"http://127.0.0.1:34567","rootToken":"hvs.…","ca":"-----BEGIN…"}
//
// ("ca" with -tls only) and then answers each line of standard input with one
// JSON line: seal, unseal, or stop. End of input is stop, so that the server
// never outlives the test that started it. With -data the storage is a folder
// and a later run on the same folder and -listen address is a restart of the
// same server.
//
// Vault 1.15 and later is under the Business Source License. This command is a
// module of its own, outside go.work, and nothing that is shipped links it.
//
// Limits: one node (no standby, so no 412 or 473 of its own), no namespaces
// (they need an Enterprise licence), no audit devices.
package main
