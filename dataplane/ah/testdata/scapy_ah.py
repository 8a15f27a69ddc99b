"""An independent AH implementation for the tests: reads one JSON request per
line, answers with one JSON line. Packets are hexadecimal and start at the IP
header."""

import json
import sys

from scapy.config import conf

conf.verb = 0
from scapy.layers.inet import IP  # noqa: E402
from scapy.layers.inet6 import IPv6  # noqa: E402
from scapy.layers.ipsec import AH, SecurityAssociation  # noqa: E402
from scapy.packet import raw  # noqa: E402


def answer(q):
    tunnel = None
    if q.get("src"):
        tunnel = (IPv6 if ":" in q["src"] else IP)(src=q["src"], dst=q["dst"])
    sa = SecurityAssociation(
        AH,
        spi=q["spi"],
        auth_algo=q["auth"],
        auth_key=bytes.fromhex(q["key"]),
        tunnel_header=tunnel,
        esn_en=q["esn"],
        esn=q["high"],
    )
    pkt = (IPv6 if q["packet"][0] == "6" else IP)(bytes.fromhex(q["packet"]))
    if q["op"] == "seal":
        return raw(sa.encrypt(pkt, seq_num=q["low"]))
    return raw(sa.decrypt(pkt))


for line in sys.stdin:
    q = json.loads(line)
    try:
        reply = {"packet": answer(q).hex()}
    except Exception as e:  # reported to the test, which fails
        reply = {"error": "%s: %s" % (type(e).__name__, e)}
    print(json.dumps(reply), flush=True)
