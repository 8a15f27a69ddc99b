"""A host whose IPsec is scapy's: AH around ESP, both in transport mode. One line on
standard input is one thing to send, one line on standard output what came of it.

arguments: own address, the peer's, and in hexadecimal the keys of ESP and AH from here,
and of ESP and AH from the peer
"""

import socket
import sys

from scapy.config import conf

conf.verb = 0
from scapy.layers.inet import ICMP, IP, UDP  # noqa: E402
from scapy.layers.ipsec import AH, ESP, SecurityAssociation  # noqa: E402
from scapy.packet import raw, split_layers  # noqa: E402

# Where scapy sees ESP inside AH it computes the ICV of the ESP. So it does not look.
for under in (IP, AH):
    split_layers(under, ESP)

here, peer = sys.argv[1:3]
keys = [bytes.fromhex(k) for k in sys.argv[3:]]


def esp(spi, key, natt=None):
    return SecurityAssociation(ESP, spi=spi, crypt_algo="AES-GCM", crypt_key=key, nat_t_header=natt)


def ah(spi, key):
    return SecurityAssociation(AH, spi=spi, auth_algo="SHA2-256-128", auth_key=key)


out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
# With a socket for each, the kernel does not say that it lacks the protocol.
back = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_AH)
back.settimeout(10)
unread = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ESP)


def echo(seq):
    return IP(raw(IP(src=here, dst=peer, id=seq) / ICMP(id=7, seq=seq) / b"around and around"))


def nested(seq):
    p = ah(0x202, keys[1]).encrypt(esp(0x102, keys[0]).encrypt(echo(seq), seq_num=seq), seq_num=seq)
    out.sendto(raw(p), (peer, 0))
    inside = ah(0x201, keys[3]).decrypt(IP(back.recv(65535)))
    if inside.proto != socket.IPPROTO_ESP:
        raise ValueError("protocol %d inside AH" % inside.proto)
    sealed = ESP(raw(inside.payload))
    inside.remove_payload()
    p = esp(0x101, keys[2]).decrypt(inside / sealed)
    if p[ICMP].type != 0 or p[ICMP].seq != seq or raw(p[ICMP].payload) != b"around and around":
        raise ValueError("answer %r" % p)
    return "answered"


def alone(seq):
    out.sendto(raw(esp(0x102, keys[0]).encrypt(echo(seq), seq_num=seq)), (peer, 0))
    return "sent"


def in_udp(seq):
    p = esp(0x102, keys[0], UDP(sport=4500, dport=4500)).encrypt(echo(seq), seq_num=seq)
    out.sendto(raw(p), (peer, 0))
    return "sent"


print("ok ready", flush=True)
for seq, line in enumerate(sys.stdin, 1):
    try:
        print("ok", {"nested": nested, "alone": alone, "in-udp": in_udp}[line.split()[0]](seq), flush=True)
    except Exception as e:  # reported to the test, which fails
        print("error %s: %s" % (type(e).__name__, e), flush=True)
