"""The keys that requests may carry: kept as digests, read again when their file changes. Standard library only."""

import hashlib
import hmac
import logging
from pathlib import Path
from typing import Self

from server.config import ServerConfig
from server.errors import ServerError

logger = logging.getLogger(__name__)


class KeyFileError(ServerError):
    """The file of keys cannot be used; the message names it and never what is in it."""


class ApiKeys:
    """Knows the good keys; lives on the event loop."""

    def __init__(self, given: tuple[str, ...] = (), file: Path | None = None) -> None:
        """`given` stay good for ever, those of `file` for as long as they are in it.

        Raises:
            KeyFileError: the file cannot be read, or holds no key.
        """
        self._given = [_digest(key.encode("utf-8", "surrogateescape")) for key in given]
        self._file = file
        self._digests = [*self._given, *self._read_file()]

    @classmethod
    def from_config(cls, config: ServerConfig) -> Self:
        """The keys of flags, variables and file."""
        return cls(config.api_keys, Path(config.api_key_file) if config.api_key_file else None)

    def __len__(self) -> int:
        return len(self._digests)

    def is_good(self, key: bytes) -> bool:
        """Whether this is one of the keys; takes as long for each."""
        digest = _digest(key)
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches)

    def reload(self) -> None:
        """Takes what is in the file now; a file that cannot be used changes nothing."""
        try:
            self._digests = [*self._given, *self._read_file()]
        except KeyFileError as err:
            logger.error("%s; the keys stay as they were", err)
        else:
            logger.info("%s was read again: %d keys are good now", self._file, len(self))

    def _read_file(self) -> list[bytes]:
        return [] if self._file is None else [_digest(key) for key in read_key_file(self._file)]


def read_key_file(path: Path) -> list[bytes]:
    """One key in a line; blank lines, and those that begin with #, are left out.

    Raises:
        KeyFileError: it cannot be read, or holds no key.
    """
    if path.exists() and not path.is_file():
        raise KeyFileError(f"--api-key-file {path} is no regular file, and it has to be read again")
    try:
        lines = [line.strip() for line in path.read_bytes().splitlines()]
    except OSError as err:
        raise KeyFileError(f"--api-key-file {path} cannot be read: {err.strerror}") from err
    keys = [line for line in lines if line and not line.startswith(b"#")]
    if not keys:
        raise KeyFileError(f"--api-key-file {path} holds no key: write one into each line")
    return keys


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
