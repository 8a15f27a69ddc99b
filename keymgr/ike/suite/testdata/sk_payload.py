#!/usr/bin/env python3
"""Writes sk_payload.txt: Encrypted payloads and AUTH values made without Go.

The ciphers are those of the Python package "cryptography" (OpenSSL), the MACs
those of hmac and hashlib; padding, nonces and associated data are put together
here, from RFC 7296 §3.14 and §2.15, and RFC 5282 §3 to §5. Run it in this
directory; the output does not change.
"""
import hashlib
import hmac

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.cmac import CMAC


def octets(label, n):
    return hashlib.shake_256(label.encode()).digest(n)


def header(body_len):
    """IKE header and SK payload header, with final lengths."""
    length = 28 + 4 + body_len
    return (octets("SPIi", 8) + octets("SPIr", 8) + bytes([46, 0x20, 37, 0x08]) + (1).to_bytes(4, "big")
            + length.to_bytes(4, "big") + bytes([41, 0]) + (4 + body_len).to_bytes(2, "big"))


lines = ["# Written by sk_payload.py: encr, integ, SK_e, SK_a, IV, aad, plaintext, body; hexadecimal."]

for name, key_len, aead in (("aes128gcm16", 16, AESGCM), ("aes256gcm16", 32, AESGCM), ("chacha20poly1305", 32, ChaCha20Poly1305)):
    for n in (0, 1, 12, 16, 250):
        sk_e, plain = octets(name + "SK_e", key_len + 4), octets(name + "P", n)
        iv = (n + 1).to_bytes(8, "big")
        aad = header(8 + n + 1 + 16)
        body = iv + aead(sk_e[:key_len]).encrypt(sk_e[key_len:] + iv, plain + b"\0", aad)
        lines.append(" ".join([name, "-", sk_e.hex(), "-", iv.hex(), aad.hex(), plain.hex() or "-", body.hex()]))

for name, key_len in (("aes128", 16), ("aes256", 32)):
    for integ, hash_name, mac_key, icv in (("sha256", "sha256", 32, 16), ("sha384", "sha384", 48, 24), ("sha512", "sha512", 64, 32)):
        for n in (0, 15, 16, 250):
            sk_e, sk_a, plain = octets(name + "SK_e", key_len), octets(integ + "SK_a", mac_key), octets(name + "P", n)
            iv = octets("IV%d" % n, 16)
            pad = -(n + 1) % 16
            inner = plain + bytes(pad) + bytes([pad])
            enc = Cipher(algorithms.AES(sk_e), modes.CBC(iv)).encryptor()
            sealed = iv + enc.update(inner) + enc.finalize()
            aad = header(len(sealed) + icv)
            body = sealed + hmac.new(sk_a, aad + sealed, hash_name).digest()[:icv]
            lines.append(" ".join([name, integ, sk_e.hex(), sk_a.hex(), iv.hex(), aad.hex(), plain.hex() or "-", body.hex()]))

# RFC 5282: GCM with shorter tags, which are the longer one cut, and CCM; RFC 5930:
# counter mode; RFC 2451 and RFC 2405: DES, which is triple DES with one key.
for name, key_len, icv in (("aes128gcm8", 16, 8), ("aes256gcm12", 32, 12), ("aes192gcm16", 24, 16)):
    for n in (0, 1, 16, 250):
        sk_e, plain, iv = octets(name + "SK_e", key_len + 4), octets(name + "P", n), (n + 1).to_bytes(8, "big")
        aad = header(8 + n + 1 + icv)
        whole = AESGCM(sk_e[:key_len]).encrypt(sk_e[key_len:] + iv, plain + b"\0", aad)
        lines.append(" ".join([name, "-", sk_e.hex(), "-", iv.hex(), aad.hex(), plain.hex() or "-", (iv + whole[:n + 1 + icv]).hex()]))
for name, key_len, icv in (("aes128ccm8", 16, 8), ("aes192ccm12", 24, 12), ("aes256ccm16", 32, 16)):
    for n in (0, 1, 15, 16, 250):
        sk_e, plain, iv = octets(name + "SK_e", key_len + 3), octets(name + "P", n), (n + 1).to_bytes(8, "big")
        aad = header(8 + n + 1 + icv)
        body = iv + AESCCM(sk_e[:key_len], tag_length=icv).encrypt(sk_e[key_len:] + iv, plain + b"\0", aad)
        lines.append(" ".join([name, "-", sk_e.hex(), "-", iv.hex(), aad.hex(), plain.hex() or "-", body.hex()]))


def cmac(key, data):
    c = CMAC(algorithms.AES(key))
    c.update(data)
    return c.finalize()


def hmac_of(hash_name):
    return lambda key, data: hmac.new(key, data, hash_name).digest()


for name, key_len, salt, cipher, block, iv_len, integ, mac_key, icv, mac_of in (
        ("aes128ctr", 16, 4, algorithms.AES, 1, 8, "sha256", 32, 16, hmac_of("sha256")),
        ("aes256ctr", 32, 4, algorithms.AES, 1, 8, "aescmac", 16, 12, cmac),
        ("aes192", 24, 0, algorithms.AES, 16, 16, "sha1", 20, 12, hmac_of("sha1")),
        ("3des", 24, 0, TripleDES, 8, 8, "md5", 16, 12, hmac_of("md5")),
        ("des", 8, 0, TripleDES, 8, 8, "sha1", 20, 12, hmac_of("sha1"))):
    for n in (0, 7, 8, 250):
        sk_e, sk_a, plain = octets(name + "SK_e", key_len + salt), octets(integ + "SK_a", mac_key), octets(name + "P", n)
        iv = (n + 1).to_bytes(8, "big") if salt else octets("IV%d" % n, iv_len)
        pad = -(n + 1) % block
        mode = modes.CTR(sk_e[key_len:] + iv + b"\0\0\0\1") if salt else modes.CBC(iv)
        key = sk_e[:key_len] * (3 if name == "des" else 1)
        enc = Cipher(cipher(key), mode).encryptor()
        sealed = iv + enc.update(plain + bytes(pad) + bytes([pad])) + enc.finalize()
        aad = header(len(sealed) + icv)
        body = sealed + mac_of(sk_a, aad + sealed)[:icv]
        lines.append(" ".join([name, integ, sk_e.hex(), sk_a.hex(), iv.hex(), aad.hex(), plain.hex() or "-", body.hex()]))

lines.append("# auth, prf, PSK, message, nonce, SK_p, ID body, AUTH.")
for prf, hash_name in (("prfsha256", "sha256"), ("prfsha384", "sha384"), ("prfsha512", "sha512")):
    def mac(key, data):
        return hmac.new(key, data, hash_name).digest()
    psk, message, nonce = b"correct horse battery staple", octets("message", 300), octets("nonce", 32)
    sk_p, identity = octets(prf + "SK_p", hashlib.new(hash_name).digest_size), bytes([2, 0, 0, 0]) + b"web-1.fleet.example"
    auth = mac(mac(psk, b"Key Pad for IKEv2"), message + nonce + mac(sk_p, identity))
    lines.append(" ".join(["auth", prf, psk.hex(), message.hex(), nonce.hex(), sk_p.hex(), identity.hex(), auth.hex()]))

with open("sk_payload.txt", "w") as f:
    f.write("\n".join(lines) + "\n")
