"""The page at `/`: one HTML file, without anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

PAGE = Path(__file__).with_name("page.html").read_bytes()


def _allowed(tag: str) -> str:
    """Return the digests of the page's own scripts or styles, as a content security policy names them."""
    texts = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), PAGE, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in texts)


# Whatever a catalogue's attributes hold, the browser runs and loads nothing but what stands here.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src blob: data:; form-action 'none'; "
    f"base-uri 'none'; frame-ancestors 'none'; script-src {_allowed('script')}; style-src {_allowed('style')}",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
