"""Values made the fast way are those made the usual way."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, astuple, dataclass, fields, replace
from typing import Any

import pytest

from biaojie.change import Action, Change, Receipt, make_change, make_receipt
from biaojie.identifier import Identifier
from biaojie.making import maker
from biaojie.record import (
    PERMISSIONS_DEFAULT,
    Record,
    Reference,
    Status,
    Value,
    make_record,
    make_value,
)

REFERENCES = (Reference("88.118.8/x", 1),)
VALUE = Value(1, "URL", b"x", 5, True, 6, PERMISSIONS_DEFAULT, REFERENCES)
VALUES = [
    (make_value, VALUE),
    (make_record, Record(Identifier("88.118.8", "SN1"), (VALUE,), Status.FROZEN, "t", 2, 3, 4, 5)),
    (make_change, Change(Action.BULK, "88.118.8/SN1", 1, "key", bytes(32), "SN9", 9)),
    (make_receipt, Receipt("88.118.8/SN1", Action.CREATE, "active", 1, 7)),
]


@pytest.mark.parametrize(("make", "usual"), VALUES)
def test_what_is_made_is_the_same_and_closed(make: Any, usual: Any) -> None:
    given = [getattr(usual, field.name) for field in fields(usual)]
    made = make(*given)
    assert type(made) is type(usual)
    assert made == usual
    assert hash(made) == hash(usual)
    assert repr(made) == repr(usual)
    assert astuple(made) == astuple(usual)
    assert replace(made) == copy.copy(made) == pickle.loads(pickle.dumps(made)) == usual
    with pytest.raises(FrozenInstanceError):
        setattr(made, fields(usual)[0].name, None)
    with pytest.raises(TypeError):
        make(*given[:-1])


def test_only_dataclasses_with_slots_have_a_maker() -> None:
    @dataclass(frozen=True)
    class Open:
        a: int

    with pytest.raises(AttributeError):
        maker(Open)
