package engine

import (
	"encoding/binary"

	"github.com/testudo-ipsec/testudo/dataplane/netio"
	"github.com/testudo-ipsec/testudo/dataplane/packet"
)

// IPv6 packets that are larger than the device can only have been made whole on the
// way: by the gateway that sent them, which had to see their ports, or by this one.
// Their source has cut them to its path, and routers behind this host may not (RFC
// 8200 §5), so they are cut again here, to what every link carries.

// pieceSize is the length of the pieces.
const pieceSize = packet.MinMTU6

// defaultMTU is the device's until SetMTU.
const defaultMTU = 1500

// SetMTU tells the MTU of the TUN device.
func (e *Engine) SetMTU(mtu int) { e.mtu.Store(int32(mtu)) }

// fragmenter is room for the headers of a piece.
type fragmenter struct{ head [pieceSize]byte }

// cutUp delivers a whole IPv6 packet in fragments (RFC 8200 §4.5).
func (w *inWorker) cutUp(p *arrival) packet.Why {
	insert := int(p.h.Insert)
	each := (pieceSize - insert - 8) &^ 7
	if each < 8 {
		return packet.WhyExtensions
	}
	w.gro.flush() // what came before it
	head := w.pieces.head[:insert+8]
	copy(head, p.head[:insert])
	f := head[insert:]
	f[0], f[1] = head[p.h.InsertNext], 0
	head[p.h.InsertNext] = packet.ProtoFragment
	binary.BigEndian.PutUint32(f[4:], w.e.ident.Add(1))
	rest := p.head[insert:p.h.Length]
	for at := 0; at < len(rest); at += each {
		piece := rest[at:min(at+each, len(rest))]
		offset := uint16(at)
		if at+len(piece) < len(rest) {
			offset |= 1 // more follow
		}
		binary.BigEndian.PutUint16(f[2:], offset)
		packet.SetLength(head, len(head)+len(piece))
		if err := w.gro.tun.Write(netio.Offload{}, [][]byte{head, piece}); err != nil {
			w.counts.add(packet.WhyWrite, 1)
		}
	}
	return packet.WhyOK
}
