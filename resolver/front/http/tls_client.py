"""What the HTTP front knows of TLS where there is none: without the libraries that make it."""

from __future__ import annotations

import asyncio


class CannotServeTls(Exception):
    """The certificate or its key cannot be used; in English and Chinese."""


def client_certificate(transport: asyncio.BaseTransport | None) -> bytes:
    """DER; empty where there is none, or no TLS."""
    found = transport.get_extra_info("ssl_object") if transport is not None else None
    return b"" if found is None else bytes(found.certificate)
