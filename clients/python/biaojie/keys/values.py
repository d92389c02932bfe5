"""Public and private keys as values, bounded on the day they are made: a key that exists here
can be used without fear of what its numbers cost. No cryptographic library is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from . import sm2_curve
from .errors import bad

RSA_BITS = (1024, 8192)
RSA_EXPONENT_BITS_MAX = 64
DSA_BITS = frozenset({(1024, 160), (2048, 224), (2048, 256), (3072, 256)})
"""Sizes of p and q that FIPS 186 has."""
DH_BITS = (1024, 3072)


@dataclass(frozen=True, slots=True)
class RsaPublicKey:
    n: int
    e: int

    def __post_init__(self) -> None:
        low, high = RSA_BITS
        if not low <= self.n.bit_length() <= high or self.n % 2 == 0:
            raise bad(
                f"An RSA modulus must be odd and have {low} to {high} bits.",
                f"RSA 模数应为奇数且长度为 {low} 至 {high} 位。",
            )
        if not 3 <= self.e < 1 << RSA_EXPONENT_BITS_MAX or self.e % 2 == 0:
            raise bad(
                f"An RSA exponent must be odd, 3 or more and under 2^{RSA_EXPONENT_BITS_MAX}.",
                f"RSA 公钥指数应为奇数、不小于 3 且小于 2^{RSA_EXPONENT_BITS_MAX}。",
            )

    @property
    def kind(self) -> str:
        return "RSA"

    @property
    def bits(self) -> int:
        return self.n.bit_length()


@dataclass(frozen=True, slots=True)
class DsaPublicKey:
    p: int
    q: int
    g: int
    y: int

    def __post_init__(self) -> None:
        if (self.p.bit_length(), self.q.bit_length()) not in DSA_BITS:
            raise bad(
                "DSA sizes p/q must be 1024/160, 2048/224, 2048/256 or 3072/256 bits.",
                "DSA 的 p/q 长度应为 1024/160、2048/224、2048/256 或 3072/256 位。",
            )
        if self.p % 2 == 0 or (self.p - 1) % self.q:
            raise bad("The DSA q does not divide p - 1.", "DSA 的 q 不整除 p - 1。")
        if not (1 < self.g < self.p and 1 < self.y < self.p - 1):
            raise bad("The DSA g or y is out of range.", "DSA 的 g 或 y 超出范围。")

    @property
    def kind(self) -> str:
        return "DSA"

    @property
    def bits(self) -> int:
        return self.p.bit_length()


@dataclass(frozen=True, slots=True)
class Sm2PublicKey:
    x: int
    y: int

    def __post_init__(self) -> None:
        if not sm2_curve.on_curve(self.x, self.y):
            raise bad("This is not a point on the SM2 curve.", "该点不在 SM2 曲线上。")

    @property
    def kind(self) -> str:
        return "SM2"

    @property
    def bits(self) -> int:
        return 256

    @property
    def point(self) -> bytes:
        """04 ‖ x ‖ y, 65 octets."""
        return b"\4" + b"".join(n.to_bytes(sm2_curve.OCTETS, "big") for n in (self.x, self.y))

    @classmethod
    def from_point(cls, point: bytes) -> Sm2PublicKey:
        """From 65 octets (04 ‖ x ‖ y), 64 (x ‖ y) or 33 (compressed); raises InvalidKey."""
        size = sm2_curve.OCTETS
        if len(point) == 2 * size + 1 and point[0] == 4:
            point = point[1:]
        if len(point) == 2 * size:
            return cls(int.from_bytes(point[:size], "big"), int.from_bytes(point[size:], "big"))
        if len(point) == size + 1 and point[0] in (2, 3):
            found = sm2_curve.decompress(int.from_bytes(point[1:], "big"), point[0] == 3)
            if found:
                return cls(*found)
        raise bad("This is not an SM2 point.", "这不是 SM2 曲线点的编码。")


PublicKey = RsaPublicKey | DsaPublicKey | Sm2PublicKey


@dataclass(frozen=True, slots=True)
class RsaPrivateKey:
    """`d` and the primes; never printed by repr()."""

    public: RsaPublicKey
    d: int = field(repr=False)
    p: int = field(repr=False)
    q: int = field(repr=False)

    def __post_init__(self) -> None:
        n, e = self.public.n, self.public.e
        if self.p < 3 or self.q < 3 or self.p * self.q != n or not 0 < self.d < n:
            raise bad("The RSA primes do not belong to the modulus.", "RSA 素数与模数不符。")
        if (e * self.d - 1) % math.lcm(self.p - 1, self.q - 1):
            raise bad("The RSA exponents do not belong together.", "RSA 公私钥指数不匹配。")

    @property
    def kind(self) -> str:
        return "RSA"


@dataclass(frozen=True, slots=True)
class DsaPrivateKey:
    public: DsaPublicKey
    x: int = field(repr=False)

    def __post_init__(self) -> None:
        public = self.public
        if not 0 < self.x < public.q or pow(public.g, self.x, public.p) != public.y:
            raise bad("The DSA private and public numbers do not match.", "DSA 私钥与公钥不匹配。")

    @property
    def kind(self) -> str:
        return "DSA"


@dataclass(frozen=True, slots=True)
class Sm2PrivateKey:
    public: Sm2PublicKey
    d: int = field(repr=False)

    def __post_init__(self) -> None:
        # Never seen outside this machine: made once, when a key is generated or loaded.
        if not 0 < self.d < sm2_curve.N - 1:
            raise bad("The SM2 private number is out of range.", "SM2 私钥数值超出范围。")
        if sm2_curve.multiply(self.d) != (self.public.x, self.public.y):
            raise bad("The SM2 private and public keys do not match.", "SM2 私钥与公钥不匹配。")

    @property
    def kind(self) -> str:
        return "SM2"

    @classmethod
    def from_number(cls, d: int) -> Sm2PrivateKey:
        if not 0 < d < sm2_curve.N - 1:
            raise bad("The SM2 private number is out of range.", "SM2 私钥数值超出范围。")
        return cls(Sm2PublicKey(*sm2_curve.multiply(d)), d)


PrivateKey = RsaPrivateKey | DsaPrivateKey | Sm2PrivateKey


@dataclass(frozen=True, slots=True)
class DhPublicKey:
    """A Diffie-Hellman value of a session setup; never an identity."""

    p: int
    g: int
    y: int

    def __post_init__(self) -> None:
        low, high = DH_BITS
        if not low <= self.p.bit_length() <= high or self.p % 2 == 0:
            raise bad(
                f"A Diffie-Hellman prime must be odd and have {low} to {high} bits.",
                f"Diffie-Hellman 素数应为奇数且长度为 {low} 至 {high} 位。",
            )
        if not (1 < self.g < self.p - 1 and 1 < self.y < self.p - 1):
            raise bad("The Diffie-Hellman value is out of range.", "Diffie-Hellman 数值超出范围。")


def rsa_private(n: int, e: int, d: int, p: int = 0, q: int = 0) -> RsaPrivateKey:
    """An RSA private key; the primes are found from n, e and d where they are not given."""
    public = RsaPublicKey(n, e)
    if not 0 < d < n:
        raise bad("The RSA private exponent is out of range.", "RSA 私钥指数超出范围。")
    if not p or not q:
        p, q = _primes(n, e * d - 1)
    return RsaPrivateKey(public, d, max(p, q), min(p, q))


def rsa_private_without_exponent(n: int, d: int) -> RsaPrivateKey:
    """From modulus and private exponent alone, which some old key files hold: the public
    exponent is one of the customary ones."""
    RsaPublicKey(n, 3)  # bounds before anything is computed
    if 0 < d < n:
        for e in (65537, 3, 17, 257, 5, 7):
            if pow(pow(2, e, n), d, n) == 2:
                return rsa_private(n, e, d)
    raise bad("The RSA exponents do not belong together.", "RSA 公私钥指数不匹配。")


def _primes(n: int, multiple: int) -> tuple[int, int]:
    """The two primes of n, from a multiple of the order of its group; a square root of 1 that
    is not ±1 has a factor in common with n."""
    odd, twos = multiple, 0
    while odd and odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 64) if odd and pow(2, multiple, n) == 1 else ():
        root = pow(base, odd, n)
        for _ in range(min(twos, n.bit_length() + RSA_EXPONENT_BITS_MAX)):
            square = root * root % n
            if square == 1:
                break
            root = square
        else:
            continue
        if root not in (1, n - 1):
            p = math.gcd(root - 1, n)
            if 1 < p < n:
                return p, n // p
    raise bad("The RSA exponents do not belong together.", "RSA 公私钥指数不匹配。")
