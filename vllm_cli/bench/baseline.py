"""Reads an earlier run's `--json` file."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from vllm_cli.bench.errors import BaselineError


class _Versioned(Protocol):
    @property
    def schema_version(self) -> int: ...


R = TypeVar("R", bound=_Versioned)


def decode_baseline(path: Path, kind: type[R], *, command: str, schema_version: int) -> R:
    """The decoded file; the caller checks that it measured the same.

    Raises:
        BaselineError: the file cannot be read, or is not a result file of this kind and version.
    """
    try:
        baseline = msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise BaselineError(f"Cannot read the baseline {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise BaselineError(f"The baseline {path} is not a file of `{command} --json`: {error}") from error
    if baseline.schema_version != schema_version:
        raise BaselineError(f"The baseline {path} has schema version {baseline.schema_version}, not {schema_version}")
    return baseline


def require_same(path: Path, then: object, now: object, names: Iterable[str]) -> None:
    """Checks that the baseline's settings `then` and this run's `now` have equal values under these names.

    Raises:
        BaselineError: names the first difference.
    """
    for name in names:
        before, after = getattr(then, name), getattr(now, name)
        if before != after:
            raise BaselineError(f"The baseline {path} was measured with {name} {before!r}, this run has {after!r}")
