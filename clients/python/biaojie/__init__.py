"""biaojie: identifiers, records and the client of the identifier node.

Importing a codec or a value never imports the client or its HTTP stack: the client's names
are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .account import ApiKey, Prefix, PrefixStatus, Role
from .calls import IssuedKey, Resolved, Row
from .change import Action, BatchResult, Change, Entry, Receipt, RowResult
from .errors import BiaojieError
from .identifier import Identifier, Key
from .range import Range
from .record import Permissions, Record, Reference, Status, Value
from .wire.imports import ImportJob, ImportOptions, RowFault

if TYPE_CHECKING:
    from .client import Client
    from .sync import SyncClient

__version__ = "0.1.0"
__all__ = [
    "Action",
    "ApiKey",
    "BatchResult",
    "BiaojieError",
    "Change",
    "Client",
    "Entry",
    "Identifier",
    "ImportJob",
    "ImportOptions",
    "IssuedKey",
    "Key",
    "Permissions",
    "Prefix",
    "PrefixStatus",
    "Range",
    "Receipt",
    "Record",
    "Reference",
    "Resolved",
    "Role",
    "Row",
    "RowFault",
    "RowResult",
    "Status",
    "SyncClient",
    "Value",
]
_LAZY = {"Client": "client", "SyncClient": "sync"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LAZY[name]}", __name__), name)
