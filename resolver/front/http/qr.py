"""QR codes as inline SVG, without style or script. Pure; the same text gives the same code."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup

QR_TEXT_CHARS_MAX = 600
"""Beyond this (version 20) a telephone hardly reads the code, and making it holds the loop."""
QUIET_ZONE_MODULES = 4
"""ISO/IEC 18004 §9.1 asks for four light modules on each side."""


@lru_cache(maxsize=1_024)
def qr_svg(text: str) -> Markup | None:
    """The SVG element of a QR code holding `text`, error level M or better; None if too long.

    Takes 5 to 35 ms the first time, by length.
    """
    if not text or len(text) > QR_TEXT_CHARS_MAX or not text.isascii():
        return None
    import segno
    from markupsafe import Markup

    code = segno.make_qr(text, error="m")
    # dark on light whatever the page's colours are: many readers do not take inverted codes
    drawn = code.svg_inline(
        border=QUIET_ZONE_MODULES, omitsize=True, dark="#000", light="#fff", svgclass="qr-code"
    )
    return Markup(drawn)  # noqa: S704 - segno puts modules in, never the text
