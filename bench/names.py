"""The names a run asks for and the answer each of them must get.

Own names carry their proof: a value is a hash, keyed and over name and generation, so that any
answer can be checked without a table, whoever wrote it and when. Names of an existing list bring
their values along (what `biaojie export` wrote).

A generation is a whole number that grows with each write of a name; 0 is what a run finds at
its start.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from biaojie.record import Permissions, Status
from biaojie.wire.document import decode_record

from .words import BenchFault

VALUE_INDEX: Final = 1
VALUE_TYPE: Final = "URL"
_HEAD: Final = "https://bench.example/"
VALUE_OCTETS_MIN: Final = 96
"""Head, generation and a whole hash fit; the rest is more of the same hash."""
_HASH_CHARS: Final = 40
LISTED_MAX: Final = 5_000_000

Triple = tuple[int, str, bytes]
"""Index, type and data of a value."""
Found = tuple[str, tuple[Triple, ...]]
"""What an answer said: the identifier, and its values in order of index."""


class Names(Protocol):
    """`count` names that are registered, by number, and any number of others that are not."""

    @property
    def count(self) -> int: ...

    def name(self, number: int) -> str: ...

    def unknown(self, number: int) -> str:
        """A name that is not registered; for numbers up to 2**40."""
        ...

    def number_of(self, name: str) -> int | None: ...

    def generation_of(self, number: int, found: Found) -> int | None:
        """The generation of the right answer to that name; None if `found` is no right answer."""
        ...

    def data(self, number: int, generation: int) -> bytes:
        """The data that the right answer holds and no other answer does."""
        ...


@dataclass(frozen=True, slots=True)
class OwnNames:
    """Names `PREFIX/STEM-0000000000`, registered by the bench itself.

    `value_octets` is the size of the one value each has.
    """

    prefix: str
    count: int
    value_octets: int = 125
    stem: str = "B"
    seal: str = "biaojie-bench"

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 2**32 or self.value_octets < VALUE_OCTETS_MIN:
            raise BenchFault(
                f"Names are 1 or more, their values at least {VALUE_OCTETS_MIN} octets.",
                f"标识数应不小于 1，值不少于 {VALUE_OCTETS_MIN} 字节。",
            )

    def name(self, number: int) -> str:
        return f"{self.prefix}/{self.stem}-{number:010d}"

    def unknown(self, number: int) -> str:
        return f"{self.prefix}/{self.stem}-U{number:013d}"

    def number_of(self, name: str) -> int | None:
        head, _, digits = name.rpartition("-")
        if head != f"{self.prefix}/{self.stem}" or not (digits.isdecimal() and digits.isascii()):
            return None
        number = int(digits)
        return number if number < self.count and self.name(number) == name else None

    def data(self, number: int, generation: int) -> bytes:
        mac = hashlib.blake2b(
            f"{self.name(number)} {generation}".encode(), digest_size=20, key=self.seal.encode()
        ).hexdigest()
        text = f"{_HEAD}{generation:x}/{mac}/"
        filler = mac * ((self.value_octets - len(text)) // _HASH_CHARS + 1)
        return (text + filler)[: self.value_octets].encode()

    def generation_of(self, number: int, found: Found) -> int | None:
        name, values = found
        if name != self.name(number) or len(values) != 1:
            return None
        index, type_, data = values[0]
        if index != VALUE_INDEX or type_ != VALUE_TYPE:
            return None
        digits = data[len(_HEAD) : len(_HEAD) + 17].partition(b"/")[0]
        try:
            generation = int(digits, 16)
        except ValueError:
            return None
        return generation if data == self.data(number, generation) else None


class ListedNames:
    """Names and values from a file of JSON records, one a line, as `biaojie export` writes it.

    Records that do not resolve for the public (drafts, retired) are passed over. All values are
    of generation 0: a list is only read, never written to.
    """

    def __init__(self, file: Path) -> None:
        self._answers: list[Found] = []
        self._numbers: dict[str, int] = {}
        try:
            with file.open(encoding="utf-8") as lines:
                for line in lines:
                    self._add(line)
        except (OSError, UnicodeError, ValueError) as error:
            raise BenchFault(
                f"{file} is no list of records as `biaojie export` writes it: {error}",
                f"{file} 不是 `biaojie export` 导出的记录文件：{error}",
            ) from None
        self.count = len(self._answers)
        if not self.count:
            raise BenchFault(f"{file} holds no public record.", f"{file} 中没有可公开解析的记录。")

    def _add(self, line: str) -> None:
        if not line.strip():
            return
        record = decode_record(json.loads(line))
        if record.status not in (Status.ACTIVE, Status.FROZEN):
            return
        if self.count_so_far >= LISTED_MAX:
            raise ValueError(f"over {LISTED_MAX} records")
        name = str(record.identifier)
        values = tuple(
            (value.index, value.type, value.data)
            for value in sorted(record.values, key=lambda value: value.index)
            if value.permissions & Permissions.PUBLIC_READ
        )
        self._numbers[name] = len(self._answers)
        self._answers.append((name, values))

    @property
    def count_so_far(self) -> int:
        return len(self._answers)

    def name(self, number: int) -> str:
        return self._answers[number][0]

    def unknown(self, number: int) -> str:
        prefix = self._answers[0][0].partition("/")[0]
        return f"{prefix}/bench-no-such-name-{number:013d}"

    def number_of(self, name: str) -> int | None:
        return self._numbers.get(name)

    def data(self, number: int, generation: int) -> bytes:
        return max((data for _, _, data in self._answers[number][1]), key=len, default=b"")

    def generation_of(self, number: int, found: Found) -> int | None:
        return 0 if found == self._answers[number] else None


def to_document(names: Names) -> dict[str, Any]:
    """What another process needs to have the same names."""
    if isinstance(names, OwnNames):
        return {"own": asdict(names)}
    raise TypeError("lists travel by their file")


def from_document(document: Mapping[str, Any]) -> Names:
    if "list" in document:
        return ListedNames(Path(document["list"]))
    return OwnNames(**document["own"])


def read_trace(file: Path, names: Names, numbers_max: int) -> Sequence[int]:
    """The numbers of the names in `file`, one name a line, in order."""
    numbers = []
    try:
        with file.open(encoding="utf-8") as lines:
            for line_number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                number = names.number_of(line.strip())
                if number is None:
                    raise BenchFault(
                        f"{file}, line {line_number}: {line.strip()[:80]!r} is not among the names"
                        " of this run, so its answer could not be checked.",
                        f"{file} 第 {line_number} 行：{line.strip()[:80]!r} 不在本次压测的标识中，"
                        "无法校验其应答。",
                    )
                numbers.append(number)
                if len(numbers) >= numbers_max:
                    break
    except (OSError, UnicodeError) as error:
        raise BenchFault(f"{file} cannot be read: {error}", f"无法读取 {file}：{error}") from None
    if not numbers:
        raise BenchFault(f"{file} holds no name.", f"{file} 中没有标识。")
    return numbers
