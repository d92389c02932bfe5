"""Keys as values: what is refused, that every form returns the same key, and that no octets
from outside raise anything but the errors that are promised."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
    load_pem_private_key,
)

from biaojie.errors import InvalidRecord
from biaojie.keys import (
    DhPublicKey,
    DiffieHellman,
    DsaPrivateKey,
    DsaPublicKey,
    InvalidKey,
    PrivateKey,
    RsaPrivateKey,
    RsaPublicKey,
    Sm2PrivateKey,
    Sm2PublicKey,
    Undecryptable,
    decode_certificate,
    decode_dh_key,
    decode_private_key,
    decode_public_key,
    decrypt_message,
    default_hash,
    encode_dh_key,
    encode_public_key,
    fingerprint,
    generate,
    jwk,
    keyfile,
    load,
    new_session_key,
    parse_identity,
    pem,
    read_reply,
    self_signed,
    session,
    sign,
    structures,
    unwrap,
    verify,
    wrap,
)
from biaojie.wire.handle import keys as wire
from biaojie.wire.handle.codes import Cipher
from biaojie.wire.handle.keys import SessionKey
from biaojie.wire.handle.version import Version

VECTORS = Path(__file__).parents[1] / "vectors" / "keys"
KEYS: dict[str, PrivateKey] = {
    kind: found
    for kind in ("rsa", "dsa", "sm2")
    if (
        found := load(
            (VECTORS / f"{kind}-{'private.pem' if kind == 'sm2' else 'privkey.bin'}").read_bytes()
        ).private
    )
}
LATE, EARLY = Version(2, 10), Version(2, 1)
USER = "88.118.8/ADMIN"


@pytest.fixture(params=sorted(KEYS))
def key(request: pytest.FixtureRequest) -> PrivateKey:
    return KEYS[request.param]


# Bounds ------------------------------------------------------------------------------


def test_rsa_numbers_are_bounded() -> None:
    n = KEYS["rsa"].public.n  # type: ignore[union-attr]
    for bad_n in (0, 15, n >> 1200, n + 1, n << 6144 | 1 << 8192 | 1):
        with pytest.raises(InvalidKey, match="1024 to 8192"):
            RsaPublicKey(bad_n, 65537)
    for bad_e in (0, 1, 2, 65536, (1 << 64) + 1, n):
        with pytest.raises(InvalidKey, match="exponent"):
            RsaPublicKey(n, bad_e)


def test_dsa_numbers_are_bounded() -> None:
    good = KEYS["dsa"].public
    assert isinstance(good, DsaPublicKey)
    p, q, g, y = good.p, good.q, good.g, good.y
    for bad in ((p << 1, q, g, y), (p, q >> 9, g, y), (p, q + 2, g, y), (p + 2, q, g, y)):
        with pytest.raises(InvalidKey):
            DsaPublicKey(*bad)
    for bad in ((p, q, 1, y), (p, q, p, y), (p, q, g, 1), (p, q, g, p - 1), (p, q, g, 0)):
        with pytest.raises(InvalidKey, match="out of range"):
            DsaPublicKey(*bad)


def test_sm2_points_must_be_on_the_curve() -> None:
    good = KEYS["sm2"].public
    assert isinstance(good, Sm2PublicKey)
    for x, y in ((good.x, good.y + 1), (0, 0), (-1, 0), (good.x + (1 << 256), good.y)):
        with pytest.raises(InvalidKey):
            Sm2PublicKey(x, y)
    for point in (b"", b"\4", b"\0" * 65, good.point[:-1], b"\5" + good.point[1:], b"\2" * 33):
        with pytest.raises(InvalidKey):
            Sm2PublicKey.from_point(point)
    other = generate("sm2")
    assert isinstance(other, Sm2PrivateKey)
    for d in (0, other.d ^ 1, 1 << 256):
        with pytest.raises(InvalidKey):
            Sm2PrivateKey(other.public, d)


def test_private_numbers_must_belong_together() -> None:
    a, b = KEYS["rsa"], generate("rsa")
    assert isinstance(a, RsaPrivateKey)
    assert isinstance(b, RsaPrivateKey)
    for wrong in ((b.d, a.p, a.q), (a.d, b.p, b.q), (a.d, 1, a.public.n), (a.d + 2, a.p, a.q)):
        with pytest.raises(InvalidKey):
            RsaPrivateKey(a.public, *wrong)
    c = KEYS["dsa"]
    assert isinstance(c, DsaPrivateKey)
    with pytest.raises(InvalidKey):
        DsaPrivateKey(c.public, c.x ^ 1)


@pytest.mark.parametrize("p_bits", [512, 4096])
def test_diffie_hellman_groups_are_bounded(p_bits: int) -> None:
    with pytest.raises(InvalidKey, match="1024 to 3072"):
        DhPublicKey((1 << p_bits) - 1, 2, 4)
    for g, y in ((1, 4), (2, 0), (2, 1), (2, session.MODP_2048 - 1)):
        with pytest.raises(InvalidKey, match="out of range"):
            DhPublicKey(session.MODP_2048, g, y)


def test_private_numbers_are_not_shown(key: PrivateKey) -> None:
    secret = key.x if isinstance(key, DsaPrivateKey) else key.d
    assert str(secret) not in repr(key)
    assert repr(key.public) in repr(key)


def test_an_invalid_key_is_an_invalid_record() -> None:
    with pytest.raises(InvalidRecord) as caught:
        decode_public_key(b"no key")
    assert caught.value.code == "invalid-record"
    assert caught.value.title.en == "The key cannot be used"
    with pytest.raises(InvalidKey, match="SM9"):
        decode_public_key(wire.encode_public_key(wire.Sm9Key("88.118.8/a")))
    with pytest.raises(InvalidKey, match="identifies nobody"):
        decode_public_key(encode_dh_key(DiffieHellman().public))
    with pytest.raises(InvalidKey, match="not a Diffie"):
        decode_dh_key(encode_public_key(KEYS["rsa"].public))


# Round trips, and the same through another library --------------------------------------


def test_every_form_gives_the_same_key(key: PrivateKey) -> None:
    public = key.public
    for form in ("binary", "pem"):
        assert decode_public_key(encode_public_key(public, form)) == public  # type: ignore[arg-type]
    assert pem.decode_public(pem.encode_public(public)) == public
    assert jwk.decode(jwk.encode(public)) == public
    assert structures.decode_public(structures.encode_public(public)) == public
    assert structures.decode_private(structures.encode_private(key)) == key
    assert pem.decode_private(pem.encode_private(key)) == key
    sealed = pem.encode_private(key, "口令".encode())
    assert b"ENCRYPTED" in sealed
    assert load(sealed, "口令".encode()).private == key
    with pytest.raises(Undecryptable):
        load(sealed, b"wrong")
    if not isinstance(key, Sm2PrivateKey):
        for encryption in (keyfile.Encryption.AES, keyfile.Encryption.TRIPLE_DES):
            sealed = keyfile.encode_private(key, b"p", encryption)
            assert keyfile.decode_private(sealed, b"p") == key
        with pytest.raises(InvalidKey, match="DES is no protection"):
            keyfile.encode_private(key, b"p", keyfile.Encryption.DES_CBC)
    else:
        with pytest.raises(InvalidKey, match="no form for SM2"):
            keyfile.encode_private(key)
    forms = [
        pem.encode_public(public),
        structures.encode_public(public),
        structures.encode_private(key),
        next(pem.blocks(sealed)).der if isinstance(key, Sm2PrivateKey) else b"",
    ]
    for data in filter(None, forms):
        assert load(data, "口令".encode()).public == public


@pytest.mark.parametrize("kind", ["rsa", "dsa"])
def test_the_cryptography_package_reads_and_writes_the_same(kind: str) -> None:
    key = KEYS[kind]
    read = load_pem_private_key(pem.encode_private(key, b"p"), b"p")
    assert isinstance(read, rsa.RSAPrivateKey | dsa.DSAPrivateKey)
    public = load_der_public_key(structures.encode_public(key.public))
    assert public == read.public_key()
    for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL):
        text = read.private_bytes(Encoding.PEM, form, NoEncryption())
        assert load(text).private == key
    text = read.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"p"))
    assert load(text, b"p").private == key
    spki = read.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert structures.encode_public(key.public) == spki
    if isinstance(read, rsa.RSAPrivateKey):
        pkcs1 = read.public_key().public_bytes(Encoding.PEM, PublicFormat.PKCS1)
        assert load(pkcs1).public == key.public
        assert isinstance(key, RsaPrivateKey)
        assert load(pem.encode_rsa_private(key)).private == key


def test_other_curves_and_old_encryption_are_refused_by_name() -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL):
        with pytest.raises(InvalidKey, match="only SM2"):
            load(other.private_bytes(Encoding.PEM, form, NoEncryption()))
    library = load_pem_private_key(pem.encode_private(KEYS["rsa"]), None)
    old = library.private_bytes(
        Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"p")
    )
    with pytest.raises(InvalidKey, match="openssl pkcs8"):
        load(old, b"p")


def test_rsa_keys_without_their_primes() -> None:
    key = KEYS["rsa"]
    assert isinstance(key, RsaPrivateKey)
    from biaojie.wire.handle.cursor import block, text

    numbers = b"".join(block(n.to_bytes(260, "big")) for n in (key.public.n, key.d))
    assert decode_private_key(text("RSA_PRIV_KEY") + numbers) == key
    numbers = b"".join(block(n.to_bytes(260, "big")) for n in (key.public.n, key.d ^ 2))
    with pytest.raises(InvalidKey, match="do not belong together"):
        decode_private_key(text("RSA_PRIV_KEY") + numbers)


def test_key_and_certificate_in_one_file() -> None:
    key = KEYS["rsa"]
    certificate = self_signed(key, "300:88.118.8/用户")
    for data in (certificate + pem.encode_private(key), pem.encode_private(key) + certificate):
        held = load(data)
        assert (held.private, held.identity) == (key, "300:88.118.8/用户")
    long = "300:88.118.8/" + "x" * 100
    assert decode_certificate(self_signed(key, long)).identity == long
    with pytest.raises(InvalidKey, match="not SM2"):
        self_signed(KEYS["sm2"], "300:88.118.8/ADMIN")


def test_identities() -> None:
    assert parse_identity("300:88.118.8/ADMIN") == (300, "88.118.8/ADMIN")
    assert parse_identity("88.118.8/a:b") == (0, "88.118.8/a:b")
    for wrong in ("", "300", "300:", "300:x", "x" * 3000 + "/", "3000000000:88/a", "1:a/\n"):
        with pytest.raises(InvalidKey):
            parse_identity(wrong)


# Signing -----------------------------------------------------------------------------


def test_what_is_signed_verifies_for_this_key_and_user_alone(key: PrivateKey) -> None:
    name = default_hash(key, (2, 10))
    signature = sign(key, name, b"data", USER)
    assert verify(key.public, name, b"data", signature, USER)
    assert not verify(key.public, name, b"date", signature, USER)
    assert not verify(generate(key.kind).public, name, b"data", signature, USER)
    assert verify(key.public, name, b"data", signature, "x") == (key.kind != "SM2")
    with pytest.raises(InvalidKey):
        sign(key, "SHA-512", b"data", USER)


def test_default_hashes_follow_the_protocol_version() -> None:
    rsa_key, dsa_key, sm2_key = KEYS["rsa"], KEYS["dsa"].public, KEYS["sm2"]
    versions = [(2, 1), (2, 6), (2, 7), (2, 10), (2, 11), (3, 0)]
    assert [default_hash(rsa_key, v) for v in versions] == ["SHA1"] * 2 + ["SHA256"] * 4
    assert [default_hash(dsa_key, v) for v in versions] == ["SHA1"] * 4 + ["SHA256"] * 2
    assert {default_hash(sm2_key, v) for v in versions} == {"SM3"}


# Sessions ----------------------------------------------------------------------------


@pytest.mark.parametrize("cipher", list(Cipher))
@pytest.mark.parametrize("version", [EARLY, LATE])
def test_messages_come_back_and_only_with_the_key(cipher: Cipher, version: Version) -> None:
    from biaojie.keys import encrypt_message

    key, other = (SessionKey(cipher, bytes(range(at, at + 32))) for at in (0, 100))
    for size in (0, 1, 15, 16, 17, 4096):
        data = random.Random(size).randbytes(size)
        sealed = encrypt_message(key, version, data)
        assert decrypt_message(key, version, sealed) == data
        with contextlib.suppress(Undecryptable):
            assert decrypt_message(other, version, sealed) != data
    for wrong in (b"", b"x", b"x" * 15, b"x" * 17, bytes(16), bytes(32)):
        with pytest.raises(Undecryptable):
            decrypt_message(key, version, wrong)
    for bad in (SessionKey(cipher, b"short"), SessionKey(9, bytes(32))):
        with pytest.raises(InvalidKey):
            encrypt_message(bad, version, b"")


@pytest.mark.parametrize("cipher", [Cipher.AES, Cipher.TRIPLE_DES, Cipher.DES])
@pytest.mark.parametrize("version", [EARLY, LATE])
def test_diffie_hellman_agrees(cipher: Cipher, version: Version) -> None:
    client = DiffieHellman()
    offered = decode_dh_key(client.offer())
    server = DiffieHellman(offered)
    chosen, answered = read_reply(server.reply(cipher, version), version)
    assert chosen == (cipher if version == LATE else Cipher.DES)
    assert client.agree(answered, cipher) == server.agree(offered, cipher)
    with pytest.raises(InvalidKey, match="groups differ"):
        client.agree(DhPublicKey(answered.p, 3, answered.y), cipher)
    with pytest.raises(InvalidKey):
        client.agree(answered, Cipher.SM4)
    for wrong in (b"", b"\0\0\0\x09" + client.offer(), b"\0\0\0\3"):
        with pytest.raises(InvalidKey):
            read_reply(wrong, LATE)


@pytest.mark.parametrize("kind", ["rsa", "sm2"])
def test_wrapped_session_keys(kind: str) -> None:
    key = KEYS[kind]
    for cipher in Cipher:
        made = new_session_key(cipher)
        assert unwrap(key, wrap(key.public, made, LATE), LATE) == made
    bare = SessionKey(Cipher.DES, b"12345678")
    assert unwrap(key, wrap(key.public, bare, EARLY), EARLY) == bare
    raw = wrap(key.public, SessionKey(0, bytes(24)), EARLY)
    assert unwrap(key, raw, LATE) == SessionKey(Cipher.TRIPLE_DES, bytes(24)), "by its length"
    said = set()
    good = wrap(key.public, new_session_key(), LATE)
    for wrong in (b"", b"x" * 5000, bytes(256), good[:-1], good[:-1] + bytes([good[-1] ^ 1])):
        with pytest.raises(Undecryptable) as caught:
            unwrap(key, wrong, LATE)
        said.add(str(caught.value))
    assert len(said) == 1, "a server that says why helps to decrypt"
    with pytest.raises(InvalidKey, match="DSA"):
        wrap(KEYS["dsa"].public, new_session_key(), LATE)
    with pytest.raises(InvalidKey, match="DSA"):
        unwrap(KEYS["dsa"], good, LATE)


# Without the libraries ------------------------------------------------------------------

ALONE = """
import sys
for name in ("cryptography", "gmssl_pyx"):
    sys.modules[name] = None
import biaojie.keys
from biaojie.keys import (
    MissingLibrary, decode_public_key, encode_public_key, fingerprint, generate, keyfile, pem
)
for name in sys.argv[1:]:
    held = keyfile.load(open(name, "rb").read())
    public = decode_public_key(encode_public_key(held.public))
    print(public.kind, fingerprint(public))
    for work in (lambda: generate("rsa"), lambda: biaojie.keys.verify,
                 lambda: pem.encode_private(held.private, b"p")):
        try:
            work()
        except MissingLibrary as error:
            print(error.code, error.detail.en)
"""


def test_reading_keys_needs_no_library_and_the_rest_says_which() -> None:
    files = [str(VECTORS / name) for name in ("rsa-privkey.bin", "sm2-private.pem")]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *files],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"RSA {fingerprint(KEYS['rsa'].public)}"
    assert lines[4] == f"SM2 {fingerprint(KEYS['sm2'].public)}"
    assert set(lines[1:4] + lines[5:]) == {"internal This needs the package cryptography."}


def test_importing_keys_loads_no_library() -> None:
    code = (
        "import sys, biaojie.keys, biaojie.keys.keyfile as _;"
        "print({'cryptography', 'gmssl_pyx', 'asyncio', 'ssl'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "set()"
