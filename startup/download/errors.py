"""Errors of a download; each is one line for the user, and a kind that the launcher acts on."""

from typing import Literal

from startup.errors import ModelNotFoundError, NoAccessError, NoSpaceError

FailureKind = Literal["refused", "unreachable", "disk", "cache", "timeout", "wrong", "failed"]
"""`refused`: the hub will not deliver; `disk`: there is no room; `cache`: its folder cannot be written to;
`wrong`: the files are not what the hub lists."""


class DownloadError(ModelNotFoundError):
    """The files could not be downloaded."""

    def __init__(self, kind: FailureKind, reason: str) -> None:
        super().__init__(" ".join(reason.split()))
        self.kind = kind


class _RefusedError(DownloadError, NoAccessError):
    """The hub denies access."""


class _NoRoomError(DownloadError, NoSpaceError):
    """The files do not fit on the disk."""


def download_error(kind: FailureKind, reason: str) -> DownloadError:
    """The error of this kind, also as the start's own kinds of errors."""
    kinds: dict[str, type[DownloadError]] = {"refused": _RefusedError, "disk": _NoRoomError}
    return kinds.get(kind, DownloadError)(kind, reason)
