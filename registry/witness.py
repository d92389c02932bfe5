"""A witness of the change log outside the database: the newest entry seen, in a small file.

Whoever can edit the database can cut the end off the log and mend its head; the witness still
knows how far the log once reached. Keep the data folder where the database's owner cannot
write, or copy the file away.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from biaojie.errors import TamperedLog


class Witness:
    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "log-witness.json"
        self._sequence = -1

    def note(self, sequence: int, hash_: bytes) -> None:
        """Remember the end of the log. Never moves backwards."""
        if self._sequence < 0:
            self._sequence = self.read()[0]
        if sequence <= self._sequence:
            return
        draft = self._path.with_suffix(".new")
        with draft.open("w", encoding="utf-8") as file:
            json.dump({"sequence": sequence, "hash": hash_.hex()}, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path)
        self._sequence = sequence

    def read(self) -> tuple[int, bytes]:
        """(0, b"") if there is none; raises TamperedLog on a file that is not a witness."""
        try:
            document = json.loads(self._path.read_text(encoding="utf-8"))
            return int(document["sequence"]), bytes.fromhex(document["hash"])
        except FileNotFoundError:
            return 0, b""
        except (KeyError, TypeError, ValueError) as error:
            raise TamperedLog(
                f"{self._path} is not a witness of the log: {error!r}.",
                f"{self._path} 不是变更日志的见证文件：{error!r}。",
            ) from error
