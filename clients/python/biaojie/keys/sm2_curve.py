"""The SM2 curve (GB/T 32918.5) and arithmetic on it for what is public or used once: checking
points and signatures, encrypting to a key, deriving the public half of a new key.

Not constant in time, so long-lived secrets stay out of here: signing and decrypting belong to
gmssl-pyx. Verifying is here because that package has no build for many machines (ARM, musl),
and a node anywhere must be able to check an SM2 login; it takes about 2 ms.
"""

from __future__ import annotations

import hashlib
import secrets

P = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF00000000FFFFFFFFFFFFFFFF
A = P - 3
B = 0x28E9FA9E9D9F5E344D5A9E4BCF6509A7F39789F515AB8F92DDBCBD414D940E93
N = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFF7203DF6B21C6052B53BBF40939D54123
G = (
    0x32C4AE2C1F1981195F9904466A39C9948FE30BBFF2660BE1715A4589334C74C7,
    0xBC3736A2F4F6779C59BDCEE36B692153D0A9877CC62A474002DF32E52139F0A0,
)
OCTETS = 32
USER_OCTETS_MAX = 8_191
"""The user id's length in bits is a two-octet number."""

Point = tuple[int, int]
_Jacobian = tuple[int, int, int]
_INFINITY: _Jacobian = (0, 1, 0)


def on_curve(x: int, y: int) -> bool:
    return 0 <= x < P and 0 <= y < P and (y * y - (x * x * x + A * x + B)) % P == 0


def decompress(x: int, odd: bool) -> Point | None:
    """The point with that x and parity of y; None where there is none."""
    if not 0 <= x < P:
        return None
    y = pow(x * x * x + A * x + B, (P + 1) // 4, P)
    if not on_curve(x, y):
        return None
    return x, (y if y % 2 == odd else P - y)


def multiply(scalar: int, point: Point = G) -> Point:
    """`scalar` × `point`, for 0 < scalar < N and a point on the curve."""
    found = _sum_of_products(scalar, point, 0, point)
    assert found is not None, "a prime order has no smaller multiple"
    return found


def message_digest(public: Point, user: bytes, message: bytes) -> int:
    """e = SM3(Z ‖ message), Z = SM3(user id, curve, public key): what SM2 signs."""
    if len(user) > USER_OCTETS_MAX:
        raise ValueError("the user id is too long")
    numbers = b"".join(n.to_bytes(OCTETS, "big") for n in (A, B, *G, *public))
    z = sm3((8 * len(user)).to_bytes(2, "big") + user + numbers)
    return int.from_bytes(sm3(z + message), "big")


def verify(public: Point, user: bytes, message: bytes, r: int, s: int) -> bool:
    """Whether (r, s) is a signature over `message` (GB/T 32918.2 §7). `public` is on the curve."""
    if not (0 < r < N and 0 < s < N):
        return False
    t = (r + s) % N
    if t == 0:
        return False
    found = _sum_of_products(s, G, t, public)
    return found is not None and (message_digest(public, user, message) + found[0]) % N == r


def encrypt(public: Point, plain: bytes) -> bytes:
    """04 ‖ C1 ‖ C3 ‖ C2 (GB/T 32918.4 §6). The only secret, k, is used this once."""
    while True:
        k = 1 + secrets.randbelow(N - 1)
        x, y = (n.to_bytes(OCTETS, "big") for n in multiply(k, public))
        stream = b"".join(
            sm3(x + y + counter.to_bytes(4, "big"))
            for counter in range(1, -(-len(plain) // OCTETS) + 1)
        )[: len(plain)]
        if any(stream):
            break
    c1 = b"\4" + b"".join(n.to_bytes(OCTETS, "big") for n in multiply(k))
    c2 = bytes(a ^ b for a, b in zip(plain, stream, strict=True))
    return c1 + sm3(x + plain + y) + c2


def sm3(data: bytes) -> bytes:
    try:
        return hashlib.new("sm3", data).digest()
    except ValueError:  # an OpenSSL built without it
        from cryptography.hazmat.primitives import hashes

        digest = hashes.Hash(hashes.SM3())
        digest.update(data)
        return digest.finalize()


def _sum_of_products(a: int, p: Point, b: int, q: Point) -> Point | None:
    """a·p + b·q, both bits in one pass (Shamir's trick); None at infinity."""
    both = _affine(_add((*p, 1), q)) if b else None
    total = _INFINITY
    for bit in range(max(a.bit_length(), b.bit_length()) - 1, -1, -1):
        total = _double(total)
        in_a, in_b = a >> bit & 1, b >> bit & 1
        if in_a and in_b:
            total = _add(total, both) if both else total
        elif in_a:
            total = _add(total, p)
        elif in_b:
            total = _add(total, q)
    return _affine(total)


def _double(point: _Jacobian) -> _Jacobian:
    x, y, z = point
    zz = z * z % P
    slope = 3 * (x - zz) * (x + zz) % P
    yy = y * y % P
    s = 4 * x * yy % P
    new_x = (slope * slope - 2 * s) % P
    return new_x, (slope * (s - new_x) - 8 * yy * yy) % P, 2 * y * z % P


def _add(point: _Jacobian, other: Point) -> _Jacobian:
    x, y, z = point
    if z == 0:
        return (*other, 1)
    zz = z * z % P
    h = (other[0] * zz - x) % P
    r = (other[1] * z * zz - y) % P
    if h == 0:
        return _double(point) if r == 0 else _INFINITY
    hh = h * h % P
    hhh = h * hh % P
    v = x * hh % P
    new_x = (r * r - hhh - 2 * v) % P
    return new_x, (r * (v - new_x) - y * hhh) % P, z * h % P


def _affine(point: _Jacobian) -> Point | None:
    x, y, z = point
    if z == 0:
        return None
    inverse = pow(z, -1, P)
    square = inverse * inverse % P
    return x * square % P, y * square * inverse % P
