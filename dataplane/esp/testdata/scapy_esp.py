"""An independent ESP implementation for the tests: reads one JSON request per
line, answers with one JSON line. Packets are hexadecimal and start at the IP
header."""

import hmac
import json
import sys

from scapy.config import conf

conf.verb = 0
from cryptography.hazmat.primitives.ciphers.algorithms import AES  # noqa: E402
from cryptography.hazmat.primitives.cmac import CMAC  # noqa: E402
from scapy.layers.inet import IP, UDP  # noqa: E402
from scapy.layers.inet6 import IPv6  # noqa: E402
from scapy.layers.ipsec import ESP, SecurityAssociation  # noqa: E402
from scapy.packet import raw  # noqa: E402


class ESNAuth:
    """scapy leaves the high half of the sequence number out of a separate ICV
    for ESP; this adds it (RFC 4303 2.2.1)."""

    def __init__(self, auth, high):
        self.icv_size, self.high = auth.icv_size, high
        self.digest = None if auth.name == "AES-CMAC-96" else auth.digestmod().name

    def mac(self, octets, key):
        octets += self.high.to_bytes(4, "big")
        if self.digest is None:
            c = CMAC(AES(key))
            c.update(octets)
            return c.finalize()[: self.icv_size]
        return hmac.new(key, octets, self.digest).digest()[: self.icv_size]

    def sign(self, pkt, key):
        pkt.data += self.mac(raw(pkt), key)
        return pkt

    def verify(self, pkt, key):
        octets = raw(pkt)
        body, icv = octets[: -self.icv_size], octets[-self.icv_size:]
        if self.mac(body, key) != icv:
            raise ValueError("integrity check failed")


def association(q):
    tunnel = None
    if q["mode"] == "tunnel":
        tunnel = (IPv6 if ":" in q["src"] else IP)(src=q["src"], dst=q["dst"])
    sa = SecurityAssociation(
        ESP,
        spi=q["spi"],
        crypt_algo=q["crypt"],
        crypt_key=bytes.fromhex(q["crypt_key"]),
        crypt_icv_size=q.get("crypt_icv"),
        auth_algo=q.get("auth") or None,
        auth_key=bytes.fromhex(q.get("auth_key", "")) or None,
        tunnel_header=tunnel,
        nat_t_header=UDP(sport=4500, dport=4500) if q["natt"] else None,
        esn_en=q["esn"],
        esn=q["high"],
    )
    if q["esn"] and q.get("auth"):
        sa.auth_algo = ESNAuth(sa.auth_algo, q["high"])
    return sa


def without_udp(pkt):
    """scapy leaves the UDP header in place when it opens an IPv6
    transport-mode packet; take it off first."""
    under, esp = pkt[UDP].underlayer, pkt[UDP].payload
    under.remove_payload()
    under.nh = 50
    under.add_payload(esp)
    return pkt


def answer(q):
    cls = IPv6 if q["packet"][0] == "6" else IP
    sa = association(q)
    pkt = cls(bytes.fromhex(q["packet"]))
    if q["op"] == "encrypt":
        return raw(sa.encrypt(pkt, seq_num=q["low"]))
    if q["natt"] and q["mode"] == "transport" and cls is IPv6:
        pkt = without_udp(pkt)
    return raw(sa.decrypt(pkt))


for line in sys.stdin:
    q = json.loads(line)
    try:
        reply = {"packet": answer(q).hex()}
    except Exception as e:  # reported to the test, which fails
        reply = {"error": "%s: %s" % (type(e).__name__, e)}
    print(json.dumps(reply), flush=True)
