// Package file is the key manager's local store: a log of sealed batches in a
// folder.
//
//	00000007.base   all records as of the end of log 7
//	00000008.log    batches since then
//	00000009.log    the one being written
//
// A file is a header and frames. A frame is one batch, sealed with AES-256-GCM
// under a key of the file's own: HKDF of the store's key, with 32 random octets of
// the header as salt and the rest of it as info. The nonce is the number of the
// frame. A file is written by one process, from its start, and never gone on with
// after an error or a restart, so no nonce can repeat; and a frame that is moved,
// left out or taken from another file does not open.
//
// Commit writes one frame and waits for fdatasync: a batch costs one write and one
// sync, whatever is in it. When half of what the files hold is out of date, a new base
// is written beside, and the old files are removed. That is also done at each start,
// under fresh keys.
//
// A frame that the end of its file cuts off was never acknowledged: it is left out,
// and that is no error. Anything else that does not open is ErrDamaged, and then
// nothing is used: what is left would be older than what others were told. A bit that
// flips in the very last frame cannot be told from one that was cut off.
//
// Why not a library. bbolt was considered: it writes and syncs twice for a
// transaction, a page of 4 KiB for every record that changes, and a damaged page is a
// fault of the process, not an error. Log-structured stores bring tens of thousands
// of lines, and threads of their own. What is needed here is to append, and to read all
// of it once.
//
// Limitations. Secrets of SAs that are gone stay on the disk, sealed, until the next
// base, and then as long as the file system keeps freed blocks. Whoever has the disk
// and the key can read them. An older copy of the folder looks as good as the present
// one.
package file
