"""Protocol versions and what hangs on them (RFC 3652 2.1, handle.net up to 2.11, DO-IRP 3.0)."""

from __future__ import annotations

from typing import Final, NamedTuple


class Version(NamedTuple):
    """A protocol version. Compare with `reaches`, not `>=`: 5.x are very old 2.0 clients."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"

    def reaches(self, other: tuple[int, int]) -> bool:
        """Whether this version has what came with `other`."""
        if self.major == MISTAKEN_MAJOR:
            return other[0] == MISTAKEN_MAJOR and self.minor >= other[1]
        return other[0] == MISTAKEN_MAJOR or tuple(self) >= other


MISTAKEN_MAJOR: Final = 5
"""What some 2.0 clients wrote as their major version."""
MAJORS: Final = frozenset({2, 3, MISTAKEN_MAJOR})
VERSION_OURS: Final = Version(2, 11)
"""The highest that we answer in. 3.0 is read as well: its octets are the same."""
VERSION_CAUTIOUS: Final = Version(2, 10)
"""What existing clients declare to a server whose HS_SITE they have not read."""


def lower(a: Version, b: Version) -> Version:
    """The one of two versions that has less."""
    return b if a.reaches(b) else a


def answer_version(suggested: Version, highest: Version = VERSION_OURS) -> Version:
    """The version to declare in the answer to a request that suggests `suggested`.

    The answer in turn suggests `highest`. Below 2 there is nothing: who suggests that is
    answered in 2.1.
    """
    if suggested.major < 2:
        return Version(2, 1)
    return lower(suggested, highest)
