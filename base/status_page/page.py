"""Builds the page at `/`, which shows status and chat. Its content security policy allows no other resources.

Standard library only, because the responder serves the page before other modules are imported.
"""

import hashlib
from binascii import b2a_base64
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

DATA_PATH: Final = "/status.json"
"""The path that the page polls."""

_FOLDER: Final = Path(__file__).parent
_SCRIPTS: Final = (
    "vendor/marked-18.2.1.umd.js",
    *("dom.js", "formulas.js", "markdown.js", "talks.js", "talk_files.js", "talk_list.js"),
    *("messages.js", "attachments.js", "contexts.js", "answers.js", "chat.js", "page.js"),
)


class StatusPage(NamedTuple):
    """The document and its headers."""

    body: bytes
    headers: tuple[tuple[str, str], ...]


@cache
def read_page() -> StatusPage:
    """Builds the document with inline style and script. The policy allows only these two, by their hashes."""
    style, script = _read("page.css"), "\n".join(map(_read, _SCRIPTS))
    document = _read("page.html").replace("/*style*/", style).replace("/*script*/", script)
    policy = {
        "default-src": "'none'",
        "style-src": _hash(style),
        "script-src": _hash(script),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    headers = (
        ("Content-Security-Policy", "; ".join(f"{name} {value}" for name, value in policy.items())),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Cache-Control", "no-cache"),
    )
    return StatusPage(document.encode(), headers)


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = b2a_base64(hashlib.sha256(text.encode()).digest(), newline=False).decode()
    return f"'sha256-{digest}'"
