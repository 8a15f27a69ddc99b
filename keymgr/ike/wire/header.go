package wire

import (
	"encoding/binary"
	"fmt"
)

// ExchangeType is the IANA registry "IKEv2 Exchange Types".
type ExchangeType uint8

const (
	IKESAInit     ExchangeType = 34
	IKEAuth       ExchangeType = 35
	CreateChildSA ExchangeType = 36
	Informational ExchangeType = 37

	IKEIntermediate ExchangeType = 43 // RFC 9242
	IKEFollowUpKE   ExchangeType = 44 // RFC 9370
)

var exchangeNames = map[ExchangeType]string{
	IKESAInit: "IKE_SA_INIT", IKEAuth: "IKE_AUTH", CreateChildSA: "CREATE_CHILD_SA", Informational: "INFORMATIONAL",
	38: "IKE_SESSION_RESUME", 39: "GSA_AUTH", 40: "GSA_REGISTRATION", 41: "GSA_REKEY", IKEIntermediate: "IKE_INTERMEDIATE", IKEFollowUpKE: "IKE_FOLLOWUP_KE",
}

func (e ExchangeType) String() string {
	if n, ok := exchangeNames[e]; ok {
		return n
	}
	return fmt.Sprintf("EXCHANGE-%d", uint8(e))
}

// Flags of the header (RFC 7296 §3.1).
type Flags uint8

const (
	FlagInitiator Flags = 0x08 // the sender is the original initiator of the IKE SA
	FlagVersion   Flags = 0x10 // the sender could speak a higher major version
	FlagResponse  Flags = 0x20
)

// Version is major version 2, minor version 0.
const Version uint8 = 0x20

// HeaderLen is the length of the IKE header.
const HeaderLen = 28

// Header is the IKE header (RFC 7296 §3.1):
//
//	                     1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                       IKE SA Initiator's SPI                  |
//	|                                                               |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                       IKE SA Responder's SPI                  |
//	|                                                               |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|  Next Payload | MjVer | MnVer | Exchange Type |     Flags     |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                          Message ID                           |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|                            Length                             |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
type Header struct {
	SPIi, SPIr uint64
	Next       PayloadType
	Version    uint8
	Exchange   ExchangeType
	Flags      Flags
	MessageID  uint32
	Length     uint32
}

// Response reports whether the message is a response.
func (h Header) Response() bool { return h.Flags&FlagResponse != 0 }

// FromInitiator reports whether the sender is the original initiator of the IKE SA.
func (h Header) FromInitiator() bool { return h.Flags&FlagInitiator != 0 }

// Append writes the header.
func (h Header) Append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint64(dst, h.SPIi)
	dst = binary.BigEndian.AppendUint64(dst, h.SPIr)
	dst = append(dst, byte(h.Next), h.Version, byte(h.Exchange), byte(h.Flags))
	dst = binary.BigEndian.AppendUint32(dst, h.MessageID)
	return binary.BigEndian.AppendUint32(dst, h.Length)
}

// ParseHeader reads the header of a datagram and checks the length field and
// the major version. The Error of a higher version comes with the header, for
// the answer to be addressed (RFC 7296 §2.5).
func ParseHeader(b []byte) (Header, error) {
	if len(b) < HeaderLen {
		return Header{}, syntax("header: got %d octets where %d are needed", len(b), HeaderLen)
	}
	h := Header{
		SPIi:      binary.BigEndian.Uint64(b),
		SPIr:      binary.BigEndian.Uint64(b[8:]),
		Next:      PayloadType(b[16]),
		Version:   b[17],
		Exchange:  ExchangeType(b[18]),
		Flags:     Flags(b[19]),
		MessageID: binary.BigEndian.Uint32(b[20:]),
		Length:    binary.BigEndian.Uint32(b[24:]),
	}
	switch {
	case h.Version>>4 > Version>>4:
		return h, &Error{Notify: InvalidMajorVersion, Data: []byte{Version >> 4}, Detail: fmt.Sprintf("header: got major version %d, want 2", h.Version>>4)}
	case h.Version>>4 < Version>>4:
		return h, syntax("header: got major version %d, want 2", h.Version>>4)
	case int64(h.Length) != int64(len(b)):
		return h, syntax("header: length field is %d, datagram has %d octets", h.Length, len(b))
	case len(b) > MaxMessage:
		return h, syntax("header: message of %d octets, at most %d", len(b), MaxMessage)
	case h.SPIi == 0:
		return h, syntax("header: initiator's SPI is zero (RFC 7296 §3.1)")
	}
	return h, nil
}

func (h Header) String() string {
	kind := "request"
	if h.Response() {
		kind = "response"
	}
	return fmt.Sprintf("%s %s %d", h.Exchange, kind, h.MessageID)
}
