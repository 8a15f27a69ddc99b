// Package push is the contract between the key manager and its workers,
// without a transport: the operations of a batch, the link they go down, and
// the reports that come up. A gRPC server, an in-process pipe and a test carry
// the same values.
//
// Down: a Batch is applied as a whole or not at all, and answered by exactly
// one Ack or Nack with its nonce. At most one batch of a node is outstanding,
// so batches cannot overtake one another; what is queued meanwhile travels in
// the next one, which is what makes bulk installs cheap.
//
// Up: the first report is Hello. It says what the worker already holds, so
// that after a reconnect only the difference travels.
package push
