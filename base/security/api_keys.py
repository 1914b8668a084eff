"""Checks API keys, which are kept as digests, and lists the paths that need no key."""

import hashlib
import hmac
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from base.errors import ServerError
from base.server_settings import NetworkConfig

logger = logging.getLogger(__name__)

READINESS_PATHS: Final = ("/health", "/ping", "/readyz")
PROBE_PATHS: Final = (*READINESS_PATHS, "/livez")
"""Paths of probes. While the server is ready, all of them return the same response."""
OPEN_PATHS: Final = frozenset(PROBE_PATHS)
"""The paths that never need a key, because probes send none."""
STATUS_PATHS: Final = frozenset({"/", "/status.json", "/startupz", "/metrics", "/load", "/version", "/openapi.json"})
"""Paths with facts about the server. As in vLLM, they need a key only with `--api-key-everywhere`."""


def find_open_paths(*, is_key_everywhere: bool) -> frozenset[str]:
    """The paths that need no key."""
    return OPEN_PATHS if is_key_everywhere else OPEN_PATHS | STATUS_PATHS


_KEY_NEEDED: Final = "Send one of the server's API keys as 'Authorization: Bearer KEY' or 'X-Api-Key: KEY'."
_KEY_WRONG: Final = "The API key is not one of the server's."


class KeyFileError(ServerError):
    """The key file cannot be used. The message names the file, but never contains its content."""


class ApiKeys:
    """Checks keys. Used on the event loop. `reload` reads a changed key file."""

    def __init__(self, given: tuple[str, ...] = (), file: Path | None = None) -> None:
        """Keys in `given` are always valid. Keys in `file` are valid as long as the file contains them.

        Raises:
            KeyFileError: the file cannot be read, or holds no key.
        """
        self._given = [_digest(key.encode("utf-8", "surrogateescape")) for key in given]
        self._file = file
        self._digests = [*self._given, *self._read_file()]

    @classmethod
    def from_config(cls, config: NetworkConfig) -> Self:
        """The keys from flags, variables and the key file."""
        return cls(config.api_keys, Path(config.api_key_file) if config.api_key_file else None)

    def __len__(self) -> int:
        return len(self._digests)

    def refusal(self, read_header: Callable[[str], bytes]) -> str | None:
        """Why a request is rejected. None if the request has a valid key.

        The key is in `Authorization: Bearer KEY` or `X-Api-Key: KEY`. `read_header` returns the bytes of a
        header, or no bytes if the request lacks this header.
        """
        scheme, _, bearer = read_header("authorization").partition(b" ")
        given = bearer if scheme.lower() == b"bearer" else b"", read_header("x-api-key")
        are_valid = [self.is_valid(key) for key in given]
        if any(are_valid):
            return None
        return _KEY_WRONG if any(given) else _KEY_NEEDED

    def is_valid(self, key: bytes) -> bool:
        """Whether the key is valid. The check takes the same time for every key."""
        digest = _digest(key)
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches)

    def reload(self) -> None:
        """Reads the file again. If it cannot be used, the old keys stay valid."""
        try:
            self._digests = [*self._given, *self._read_file()]
        except KeyFileError as err:
            logger.error("%s. The previous keys stay valid", err)
        else:
            logger.info("%s was reloaded: %d keys are valid now", self._file, len(self))

    def _read_file(self) -> list[bytes]:
        return [] if self._file is None else [_digest(key) for key in read_key_file(self._file)]


def read_key_file(path: Path) -> list[bytes]:
    """The keys in the file, one per line. Blank lines and lines that begin with # are ignored.

    Raises:
        KeyFileError: the file cannot be read, or has no key.
    """
    if path.exists() and not path.is_file():
        raise KeyFileError(f"--api-key-file {path} is not a regular file, so it could not be reloaded")
    try:
        lines = [line.strip() for line in path.read_bytes().splitlines()]
    except OSError as err:
        raise KeyFileError(f"--api-key-file {path} cannot be read: {err.strerror}") from err
    keys = [line for line in lines if line and not line.startswith(b"#")]
    if not keys:
        raise KeyFileError(f"--api-key-file {path} holds no key: write one key per line")
    return keys


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
