package netio

import "encoding/binary"

// VnetHeaderLen is the length of struct virtio_net_hdr before each packet of a
// TUN device opened with IFF_VNET_HDR.
const VnetHeaderLen = 10

// Kinds of trains (VIRTIO_NET_HDR_GSO_*).
const (
	GSONone uint8 = 0
	GSOTCP4 uint8 = 1
	GSOTCP6 uint8 = 4
	GSOUDP  uint8 = 5 // UDP_L4: many datagrams of one flow
)

const (
	gsoECN       = 0x80 // VIRTIO_NET_HDR_GSO_ECN: only the first segment has CWR
	flagNeedCsum = 1    // VIRTIO_NET_HDR_F_NEEDS_CSUM
)

// Offload is what the kernel left undone on a packet, or what it may leave
// undone on one it is given.
type Offload struct {
	// NeedsChecksum: the upper-layer checksum at ChecksumStart+ChecksumOffset
	// holds the folded sum of the pseudo header only.
	NeedsChecksum  bool
	ChecksumStart  uint16
	ChecksumOffset uint16

	// GSO other than GSONone: a train whose segments carry Segment octets of
	// payload each; HeaderLen is the length of the headers that all share.
	GSO       uint8
	HeaderLen uint16
	Segment   uint16
}

// The fields are in the byte order of the host; TUNSETVNETLE is not used.
func (o Offload) put(b *[VnetHeaderLen]byte) {
	*b = [VnetHeaderLen]byte{1: o.GSO}
	if o.NeedsChecksum {
		b[0] = flagNeedCsum
	}
	binary.NativeEndian.PutUint16(b[2:], o.HeaderLen)
	binary.NativeEndian.PutUint16(b[4:], o.Segment)
	binary.NativeEndian.PutUint16(b[6:], o.ChecksumStart)
	binary.NativeEndian.PutUint16(b[8:], o.ChecksumOffset)
}

func offloadFrom(b *[VnetHeaderLen]byte) Offload {
	return Offload{
		NeedsChecksum:  b[0]&flagNeedCsum != 0,
		GSO:            b[1] &^ gsoECN,
		HeaderLen:      binary.NativeEndian.Uint16(b[2:]),
		Segment:        binary.NativeEndian.Uint16(b[4:]),
		ChecksumStart:  binary.NativeEndian.Uint16(b[6:]),
		ChecksumOffset: binary.NativeEndian.Uint16(b[8:]),
	}
}
