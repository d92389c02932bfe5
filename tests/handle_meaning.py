"""Handle messages and typed data as JSON, for the golden vectors: what octets mean.

A dataclass is an object with its `kind` and whatever is not at its default; octets are
{"hex": …}, a version is text such as `2.11`, permissions are four digits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from biaojie.record import Permissions, Reference, Value
from biaojie.wire import handle
from biaojie.wire.handle import Version

VECTORS = Path(__file__).parent / "vectors" / "handle"
_KINDS: dict[str, Any] = {"Value": Value, "Reference": Reference} | {
    name: cls for name, cls in vars(handle).items() if isinstance(cls, type) and is_dataclass(cls)
}


def vectors(name: str) -> Iterator[dict[str, Any]]:
    """The lines of one file."""
    with (VECTORS / f"{name}.jsonl").open() as lines:
        yield from map(json.loads, lines)


def meaning(thing: Any) -> Any:
    """What a decoded thing says, as JSON."""
    if is_dataclass(thing) and not isinstance(thing, type):
        said = {"kind": type(thing).__name__}
        for field in fields(thing):
            value = getattr(thing, field.name)
            default = field.default
            if field.default_factory is not MISSING:
                default = field.default_factory()
            if field.compare and (default is MISSING or value != default):
                said[field.name] = meaning(value)
        return said
    match thing:
        case Version():
            return str(thing)
        case Permissions():
            return str(thing)
        case bytes():
            return {"hex": thing.hex()}
        case tuple() | list():
            return [meaning(item) for item in thing]
        case int() if not isinstance(thing, bool):
            return int(thing)
    return thing


def thing(said: Any, name: str = "") -> Any:
    """What `meaning` came from."""
    if isinstance(said, list):
        return tuple(thing(item) for item in said)
    if isinstance(said, dict) and "kind" in said:
        given = {key: thing(value, key) for key, value in said.items() if key != "kind"}
        return _KINDS[said["kind"]](**given)
    if isinstance(said, dict) and said.keys() == {"hex"}:
        return bytes.fromhex(said["hex"])
    if name in {"version", "suggested"}:
        major, minor = said.split(".")
        return Version(int(major), int(minor))
    if name == "permissions":
        return Permissions.parse(said)
    return said
