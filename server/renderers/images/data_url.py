"""Decodes the bytes in a `data:` URL."""

import binascii

from server.renderers.images.errors import MediaError, MediaTooLargeError

_SLICE_CHARS = 1 << 18
"""Decoded per step, which holds the GIL for 0.3 ms. A multiple of four."""


def decode_data_url(url: str, *, max_bytes: int) -> bytes:
    """Decodes strict base64: no blanks, no missing padding.

    Raises:
        MediaError: the URL is malformed, or its data are larger than `max_bytes`.
    """
    header, comma, payload = url[len("data:") :].partition(",")
    if not comma:
        raise MediaError("the data URL has no comma between its header and its data")
    if not header.lower().endswith(";base64"):
        raise MediaError(f"a data URL must be base64 (`data:image/png;base64,...`), got {header[:40]!r}")
    if len(payload) // 4 * 3 > max_bytes + 2:
        raise MediaTooLargeError(max_bytes)
    try:
        return _decode(payload)
    except ValueError as err:
        raise MediaError(f"the data URL is not valid base64: {err}") from err


def _decode(payload: str) -> bytes:
    padding = payload.find("=")
    if 0 <= padding < len(payload) - 2:
        raise ValueError("padding before the end")
    slices = range(0, len(payload), _SLICE_CHARS)
    return b"".join(binascii.a2b_base64(payload[i : i + _SLICE_CHARS], strict_mode=True) for i in slices)
