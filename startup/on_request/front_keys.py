"""Rejects requests without a valid API key before they start a stopped model."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import unquote_to_bytes

from server.machine.file_stamps import MISSING, read_stamp
from server.security.api_keys import KEY_NEEDED, ApiKeys, KeyFileError
from startup.probes.probe_http import Answer

_HEAD: Final = re.compile(rb"([A-Z]+) (\S+) HTTP/1\.[01]\r\n(.*?)\r\n\r\n", re.DOTALL)
_ORIGIN: Final = re.compile(rb"\Ahttps?://[^/]*", re.IGNORECASE)
"""In front of the path, as in requests to a proxy."""
_GUARDED: Final = b"/v1"
"""Both engines need a key for paths that begin so; what else needs one, the server knows."""
_REJECTION: Final = {
    "message": KEY_NEEDED,
    "type": "Unauthorized",
    "param": None,
    "code": 401,
}


class FrontKeys:
    """The keys of a server that does not run. What is not certainly wrong is left to the server."""

    def __init__(self, given: Sequence[str], file: str | None = None, root_path: str = "") -> None:
        """
        Args:
            given: keys of flags and variables; with no `file` either, requests need no key.
            file: more keys; read again once it has changed.
            root_path: is removed from the paths of requests.
        """
        self._given = tuple(given)
        self._file = None if file is None else Path(file)
        self._root_path = root_path.encode()
        self._stamp = MISSING
        self._keys = ApiKeys(self._given)

    def find_rejection(self, received: bytes) -> Answer | None:
        """The answer to a request, of which the first bytes are known; None if it may start the model."""
        head = _HEAD.match(received)
        if head is None or head[1] == b"OPTIONS" or not self._path_of(head[2]).startswith(_GUARDED):
            return None
        if not self._read_file() or not self._keys:
            return None
        if any(map(self._keys.is_valid, filter(None, map(_key_in, head[3].split(b"\r\n"))))):
            return None
        return Answer(401, json.dumps({"error": _REJECTION}).encode(), headers=(("WWW-Authenticate", "Bearer"),))

    def _path_of(self, target: bytes) -> bytes:
        """The path as the server compares it."""
        return unquote_to_bytes(_ORIGIN.sub(b"", target)).removeprefix(self._root_path)

    def _read_file(self) -> bool:
        """Whether the keys are known: a file that cannot be read is for the server to report."""
        if self._file is None or (stamp := read_stamp(self._file)) == self._stamp:
            return True
        try:
            self._keys = ApiKeys(self._given, self._file)
        except KeyFileError:
            return False
        self._stamp = stamp
        return True


def _key_in(line: bytes) -> bytes:
    """The key in a line of a head; empty if there is none."""
    name, _, value = line.partition(b":")
    name, value = name.lower(), value.strip()
    if name == b"x-api-key":
        return value
    scheme, _, key = value.partition(b" ")
    return key.strip() if name == b"authorization" and scheme.lower() == b"bearer" else b""
