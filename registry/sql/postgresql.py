"""PostgreSQL engines (14 or newer): session settings, and connections that hang up at once."""

from __future__ import annotations

import asyncpg
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

LOCK = f"SELECT pg_advisory_xact_lock({0x6269616F6A6965})"
"""What a writer says first: from here on it is the only one. The number spells "biaojie"."""


class _Connection(asyncpg.Connection):  # type: ignore[misc]
    async def close(self, *, timeout: float | None = None) -> None:
        """Hang up. Waiting for a frozen server to say goodbye would outlast every deadline."""
        self.terminate()


def make_engine(
    url: URL, *, writes: bool, connections: int, wait_s: float, connect_s: float, statement_s: float
) -> AsyncEngine:
    """`wait_s` bounds the wait for a free connection, `connect_s` the making of a new one."""
    settings = {
        "application_name": "biaojie",
        # Should this process freeze or vanish, the server frees what it holds.
        "statement_timeout": f"{statement_s * 1000:.0f}",
        "idle_in_transaction_session_timeout": f"{statement_s * 1000:.0f}",
        "client_connection_check_interval": "1000",
        "default_transaction_read_only": "off" if writes else "on",
        # Every statement is a look-up by key or a walk along one; statistics, which lag behind
        # a bulk load, must not talk the planner into anything else.
        "enable_seqscan": "off",
        "enable_bitmapscan": "off",
        "jit": "off",
    }
    return create_async_engine(
        url,
        isolation_level=None if writes else "AUTOCOMMIT",
        hide_parameters=True,  # private values and digests stay out of logs
        skip_autocommit_rollback=not writes,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=wait_s,
        connect_args={
            "timeout": connect_s,
            "connection_class": _Connection,
            "server_settings": settings,
        },
    )
