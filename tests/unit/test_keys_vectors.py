"""Keys against what other programs made: handle.net's Java library, hutool, the standards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from biaojie.keys import (
    DiffieHellman,
    PassphraseNeeded,
    Sm2PrivateKey,
    Sm2PublicKey,
    Undecryptable,
    decode_certificate,
    decode_dh_key,
    decode_private_key,
    decode_public_key,
    decrypt_message,
    encode_dh_key,
    encode_private_key,
    encode_public_key,
    encrypt_message,
    jwk,
    keyfile,
    load,
    pem,
    session,
    sign,
    sm2_curve,
    unwrap,
    verify,
    wrap,
)
from biaojie.wire.handle.codes import Cipher
from biaojie.wire.handle.keys import SessionKey
from biaojie.wire.handle.version import Version

VECTORS = Path(__file__).parents[1] / "vectors" / "keys"
JAVA: dict[str, str] = json.loads((VECTORS / "java.json").read_text(encoding="utf-8"))
PASSPHRASE = b"abracadabra"
MESSAGE = bytes.fromhex(JAVA["message"])
LATE, EARLY = Version(2, 10), Version(2, 1)


def file(name: str) -> bytes:
    return (VECTORS / name).read_bytes()


def octets(name: str) -> bytes:
    return bytes.fromhex(JAVA[name])


# Key files ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rsa", "dsa"])
def test_handle_net_key_files(kind: str) -> None:
    private, public = load(file(f"{kind}-privkey.bin")), load(file(f"{kind}-pubkey.bin"))
    assert private.private is not None
    assert private.public == public.public
    assert public.private is None
    assert private.public.kind == kind.upper()
    assert private.format == "handle.net private key (not encrypted)"
    assert keyfile.encode_private(private.private) == file(f"{kind}-privkey.bin")
    assert encode_public_key(public.public) == file(f"{kind}-pubkey.bin")


@pytest.mark.parametrize(
    ("name", "passphrase"),
    [
        ("rsa-privkey-aes.bin", PASSPHRASE),
        ("rsa-privkey-aes-zh.bin", "口令-42".encode()),
        ("rsa-privkey-3des.bin", PASSPHRASE),
        ("rsa-privkey-des-cbc.bin", PASSPHRASE),
        ("rsa-privkey-des-ecb.bin", PASSPHRASE),
        ("dsa-privkey-aes.bin", PASSPHRASE),
    ],
)
def test_encrypted_handle_net_key_files(name: str, passphrase: bytes) -> None:
    plain = load(file(f"{name[:3]}-privkey.bin"))
    assert load(file(name), passphrase).private == plain.private
    with pytest.raises(PassphraseNeeded):
        load(file(name))
    with pytest.raises(Undecryptable):
        load(file(name), b"wrong")


@pytest.mark.parametrize(("kind", "index"), [("rsa", 300), ("dsa", 301)])
def test_handle_net_certificates(kind: str, index: int) -> None:
    found = decode_certificate(file(f"{kind}-cert.pem"))
    assert found.identity == f"{index}:88.118.8/ADMIN"
    assert found.public == load(file(f"{kind}-pubkey.bin")).public
    both = load(file(f"{kind}-cert.pem"))
    assert (both.public, both.identity) == (found.public, found.identity)


def test_sm2_pem_of_the_national_sdk() -> None:
    public, private = load(file("sm2-public.pem")).public, load(file("sm2-private.pem")).private
    assert isinstance(private, Sm2PrivateKey)
    assert private.public == public
    assert Sm2PrivateKey.from_number(private.d) == private
    for form in ("sm2_point", "sm2_point_compressed"):
        assert Sm2PublicKey.from_point(octets(form)) == public


# Octets and JSON ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rsa", "dsa"])
def test_json_web_keys(kind: str) -> None:
    key = load(file(f"{kind}-pubkey.bin")).public
    assert jwk.encode(key) == json.loads(JAVA[f"{kind}_jwk"])
    assert load(JAVA[f"{kind}_jwk"].encode()).public == key


def test_every_way_an_sm2_key_is_written() -> None:
    text = file("sm2-public.pem")
    key = pem.decode_public(text)
    head = b"\0\0\0\x0bSM2_PUB_KEY\0\0"
    der = next(pem.blocks(text)).der
    for held in (octets("sm2_point"), octets("sm2_point")[1:], der, text):
        assert decode_public_key(head + len(held).to_bytes(4, "big") + held) == key
    assert decode_public_key(text) == key, "as IDIS nodes keep it"
    assert encode_public_key(key) == head + len(der).to_bytes(4, "big") + der
    assert decode_public_key(encode_public_key(key, "pem")) == key
    assert encode_public_key(key, "pem").startswith(b"-----BEGIN PUBLIC KEY-----\n")
    assert jwk.decode(jwk.encode(key)) == key


# Signatures --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vector", "names"),
    [
        ("MD5withRSA", ["MD5", "md5", "\1"]),
        ("SHA1withRSA", ["SHA-1", "SHA1", "\2"]),
        ("SHA256withRSA", ["SHA-256", "SHA256", "sha256", "\3"]),
        ("SHA1withDSA", ["SHA-1", "SHA1"]),
        ("SHA256withDSA", ["SHA-256", "SHA256"]),
    ],
)
def test_java_signatures(vector: str, names: list[str]) -> None:
    kind = vector[-3:].lower()
    held = load(file(f"{kind}-privkey.bin"))
    signature = octets(vector)
    for name in names:
        assert verify(held.public, name, MESSAGE, signature)
        assert not verify(held.public, name, MESSAGE + b"!", signature)
    other = "SHA-1" if "256" in vector else "SHA-256"
    assert not verify(held.public, other, MESSAGE, signature)
    assert not verify(load(file("sm2-public.pem")).public, names[0], MESSAGE, signature)
    if kind == "rsa":
        assert held.private is not None
        assert sign(held.private, names[0], MESSAGE) == signature, "PKCS#1 v1.5 has one answer"


def test_sm2_login_of_the_national_sdk() -> None:
    key, user = load(file("sm2-public.pem")).public, JAVA["sm2_user"]
    for name in ("sm2_signature", "sm2_signature_raw"):
        signature = octets(name)
        assert verify(key, "SM3", MESSAGE, signature, user)
        assert not verify(key, "SM3", MESSAGE, signature, user + "x")
        assert not verify(key, "SM3", MESSAGE + b"!", signature, user)
        assert not verify(key, "SHA-256", MESSAGE, signature, user)


def test_the_standards_own_sm2_example() -> None:
    """GB/T 32918.5-2017, annex A."""
    d = 0x3945208F7B2144B13F36E38AC6D39F95889393692860B51A42FB81EF4DF7C5B8
    x = 0x09F9DF311E5421A150DD7D161E4BC5C672179FAD1833FC076BB08FF356F35020
    y = 0xCCEA490CE26775A52DC6EA718CC1AA600AED05FBF35E084A6632F6072DA9AD13
    r = 0xF5A03B0648D2C4630EEAC513E1BB81A15944DA3827D5B74143AC7EACEEE720B3
    s = 0xB1B6AA29DF212FD8763182BC0D421CA1BB9038FD1F7F42D4840B69C485BBC1AA
    assert sm2_curve.multiply(d) == (x, y)
    user = b"1234567812345678"
    assert sm2_curve.verify((x, y), user, b"message digest", r, s)
    assert not sm2_curve.verify((x, y), user, b"message digest", r, s ^ 1)
    sealed = bytes.fromhex(
        "0404EBFC718E8D1798620432268E77FEB6415E2EDE0E073C0F4F640ECD2E149A73"
        "E858F9D81E5430A57B36DAAB8F950A3C64E6EE6A63094D99283AFF767E124DF0"
        "59983C18F809E262923C53AEC295D30383B54E39D609D160AFCB1908D0BD8766"
        "21886CA989CA9C7D58087307CA93092D651EFA"
    )
    assert session._sm2_decrypt(Sm2PrivateKey.from_number(d), sealed) == b"encryption standard"


# Sessions ----------------------------------------------------------------------------

_SIZES = {Cipher.DES: 8, Cipher.TRIPLE_DES: 24, Cipher.AES: 32}


@pytest.mark.parametrize("version", [EARLY, LATE])
@pytest.mark.parametrize("cipher", _SIZES)
def test_java_session_messages(cipher: Cipher, version: Version) -> None:
    key = SessionKey(cipher, octets("session_octets")[: _SIZES[cipher]])
    sealed = octets(f"session_{int(cipher)}_{version}")
    assert decrypt_message(key, version, sealed) == MESSAGE
    assert decrypt_message(key, version, encrypt_message(key, version, MESSAGE)) == MESSAGE
    again = encrypt_message(key, version, MESSAGE)
    assert (again == sealed) == (version == EARLY), "ECB is always the same, CBC never"


def test_sm4_messages_of_the_national_sdk() -> None:
    key = SessionKey(Cipher.SM4, octets("session_octets")[:16])
    assert encrypt_message(key, LATE, MESSAGE) == octets("sm4")
    assert decrypt_message(key, LATE, octets("sm4")) == MESSAGE


@pytest.mark.parametrize("cipher", _SIZES)
def test_java_diffie_hellman(cipher: Cipher) -> None:
    one, two = decode_dh_key(octets("dh_one")), decode_dh_key(octets("dh_two"))
    assert encode_dh_key(one) == octets("dh_one")
    side = DiffieHellman(one)
    side._secret, side.public = int(JAVA["dh_one_x"], 16), one
    assert side.agree(two, cipher).encode() == octets(f"dh_key_{int(cipher)}")


def test_session_keys_wrapped_by_java() -> None:
    rsa, sm2 = load(file("rsa-privkey.bin")), load(file("sm2-private.pem"))
    assert rsa.private is not None
    assert sm2.private is not None
    secret = octets("session_octets")[:16]
    for held, name, cipher in ((rsa, "rsa_wrapped", 3), (sm2, "sm2_wrapped", 4)):
        assert held.private is not None
        assert unwrap(held.private, octets(name), LATE) == SessionKey(cipher, secret)
        again = wrap(held.public, SessionKey(cipher, secret), LATE)
        assert unwrap(held.private, again, LATE) == SessionKey(cipher, secret)


def test_private_octets_return_as_they_came() -> None:
    for kind in ("rsa", "dsa"):
        inner = file(f"{kind}-privkey.bin")[4:]
        assert encode_private_key(decode_private_key(inner)) == inner
    data = file("rsa-pubkey.bin")
    assert data.endswith(bytes(4)), "handle.net leaves four zero octets; others do not"
    assert decode_public_key(data) == decode_public_key(data[:-4])
