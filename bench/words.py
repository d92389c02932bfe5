"""What the bench says to people: English or Chinese after the terminal's locale, and its errors."""

from __future__ import annotations

import os


class BenchFault(Exception):
    """The bench cannot do what it was asked; says so in both languages. Exit code 2."""

    def __init__(self, en: str, zh: str) -> None:
        self.en = en
        self.zh = zh
        super().__init__(f"{en}\n{zh}")


def chinese() -> bool:
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if os.environ.get(name):
            return os.environ[name].lower().startswith("zh")
    return False


def say(en: str, zh: str) -> str:
    return zh if chinese() else en


def missing_extra(error: ImportError) -> BenchFault:
    """For a package that only the extra `bench` installs."""
    return BenchFault(
        f"The bench needs {error.name}, which is not installed: pip install 'biaojie[bench]'",
        f"压测需要 {error.name}，尚未安装：pip install 'biaojie[bench]'",
    )
