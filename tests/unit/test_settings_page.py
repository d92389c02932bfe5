"""docs/settings.md has every setting, with its default and in its own words."""

from __future__ import annotations

import re
from pathlib import Path

from resolver.settings import Settings

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `(\w+)` \| (.*?) \| (.*) \|$", re.MULTILINE)


def spelled(default: object) -> str:
    if default == "":
        return "empty"
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


def test_the_page_is_complete_and_true() -> None:
    rows = ROW.findall((ROOT / "docs/settings.md").read_text(encoding="utf-8"))
    shown = {name: (default, meaning) for name, default, meaning in rows}
    assert len(shown) == len(rows)
    assert shown == {
        name: (spelled(field.default), field.description)
        for name, field in Settings.model_fields.items()
    }
