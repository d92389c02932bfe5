"""The protocol inside HTTP: `POST /<percent-encoded handle>`, media type as below, one frame as
the body; the answer's frames as the body of the reply, as they are.

Existing clients read raw octets after the blank line and look at no status: a reply is never
chunked, never compressed, and always 200. A streamed list is several frames in a row
(framing.whole_frames).
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, unquote_to_bytes

from .codes import HANDLE_OCTETS_MAX
from .cursor import Malformed

MEDIA_TYPE: Final = "application/x-hdl-message"


def is_tunnel(content_type: str) -> bool:
    """Whether a Content-Type header says that the body is a message."""
    return content_type.partition(";")[0].strip().lower() == MEDIA_TYPE


def tunnel_path(handle: str, site_path: str = "") -> str:
    """The path to post to; `site_path` is the site's attribute `path`."""
    before = site_path.strip("/")
    return f"{'/' + before if before else ''}/{quote(handle, safe='/')}"


def tunnel_handle(path: str) -> str:
    """The handle that a path names, for logs and routing; the body's own is what counts.

    Raises Malformed where it is too long or not UTF-8.
    """
    if len(path) > 3 * HANDLE_OCTETS_MAX + 1:
        raise Malformed(0, f"a path of at most {3 * HANDLE_OCTETS_MAX + 1} characters")
    try:
        return unquote_to_bytes(path.removeprefix("/")).decode()
    except UnicodeError:
        raise Malformed(0, "a path in UTF-8") from None
