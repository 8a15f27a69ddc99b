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
// Commit writes one frame, and does not wait for the disk: what the kernel has been
// given outlives the process, however that ends. A crash of the machine is told by the
// kernel's boot ID in each header. After another boot the files count only when the last
// of them ends with the mark of Close, which is written when all else is on the disk;
// otherwise the store is ErrLost, and its user begins anew, as peers whose IKE SAs
// were lost. A new file and its header are on the disk before a batch is written to it, or
// else the file before it could pass for the last one. So a batch costs one write. When
// half of what the files hold is out of date, a new base is written beside, and the old
// files are removed. That is also done at each start, under fresh keys.
//
// A frame that the end of its file cuts off was never acknowledged: it is left out,
// and that is no error. Anything else that does not open is ErrDamaged, and then
// nothing is used: what is left would be older than what others were told.
//
// Why not fdatasync for each batch. It was so, and let the state be resumed after a crash
// of the machine too. It cost a set-up a seventh of its processor time and all of them the
// disk's latency, for a case in which all peers have long noticed, and the rest of the host
// starts anew as well. The folder must be on a local file system.
//
// Why not a library. bbolt was considered: it writes twice for a
// transaction, a page of 4 KiB for every record that changes, and a damaged page is a
// fault of the process, not an error. Log-structured stores bring tens of thousands
// of lines, and threads of their own. What is needed here is to append, and to read all
// of it once.
//
// Limitations. Secrets of SAs that are gone stay on the disk, sealed, until the next
// base, and then as long as the file system keeps freed blocks. Whoever has the disk
// and the key can read them. An older copy of the folder looks as good as the present
// one: one that was put back, a snapshot of a virtual machine, and a file system that lost
// writes and was mounted again within a boot, after an error or when its disk was taken away.
package file
