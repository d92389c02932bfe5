"""docs/settings.md has every setting, with its default, its range and in its own words."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo

from resolver.settings import Settings, load

PAGE = Path(__file__).parents[2] / "docs/settings.md"
ROW = re.compile(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*) \|$", re.MULTILINE)


def spelled(default: object) -> str:
    if default is None or default == "":
        return "empty"
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


def bounds(field: FieldInfo) -> str:
    """What a setting may be, as the page has it."""
    kind: Any = field.annotation
    if kind is bool:
        return "true, false"
    if kind not in (int, float):
        choices = [choice for choice in get_args(kind) if isinstance(choice, str)]
        longest = [m.max_length for m in field.metadata if hasattr(m, "max_length")]
        return ", ".join(choices) or "".join(f"up to {n} characters" for n in longest)
    marks = {"ge": "", "gt": "over ", "le": ""}
    found = {k: getattr(m, k) for m in field.metadata for k in marks if hasattr(m, k)}
    low = next(marks[k] + f"{v}" for k, v in found.items() if k != "le")
    return f"{low} to {found['le']}"


def test_the_page_is_complete_and_true() -> None:
    rows = ROW.findall(PAGE.read_text(encoding="utf-8"))
    shown = {name: rest for name, *rest in rows}
    assert len(shown) == len(rows)
    assert shown == {
        name: [spelled(field.default), bounds(field), field.description]
        for name, field in Settings.model_fields.items()
    }


def test_the_example_works(tmp_path: Path) -> None:
    [example] = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "node.toml"
    path.write_text(example, encoding="utf-8")
    settings = load(path, {})
    for name, value in tomllib.loads(example).items():
        assert getattr(settings, name) in (value, Path(str(value)))
