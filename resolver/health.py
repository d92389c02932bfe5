"""Whether the registry answers. Set by whoever asks it, read by whoever could do without.

While it is down nobody waits for it again: reads go to the cache or fail at once, and only
the change-log tail keeps knocking.
"""

from __future__ import annotations

import structlog

log = structlog.get_logger("biaojie.health")


class Health:
    def __init__(self) -> None:
        self.down = False
        self.reason = ""

    def failed(self, reason: str) -> None:
        if not self.down:
            log.error("registry down", reason=reason)
        self.down = True
        self.reason = reason

    def answered(self) -> None:
        if self.down:
            log.warning("registry back")
        self.down = False
        self.reason = ""
