// Package e2e tests the whole of Testudo from end to end: the real daemons in
// network namespaces, real traffic, and a sniffer on the wire. Only the operator's
// command and the daemons' metrics are looked at, nothing inside them.
//
// Every test ends, by bench.finish, in the same questions. Was anything in clear on
// the wire, was a sequence number used twice under an SA, did a machine in the key
// manager panic, and is a host, after a clean stop, as it was before?
//
// TESTUDO_E2E_RESTARTS=200 restarts the worker that often in the restart test.
package e2e
