"""The kinds of start: starts of one kind import the same modules, and take about as long.

A start keeps values for later starts of its kind. They tell whether a start has succeeded, how long it took
and which kernels it has used, and whether preloading has failed.
"""

import platform
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from base.json_depth import read_json
from envs.redaction import hide_in_arguments
from startup.storage.caches import CachedValue, digest, of_type, read_all

if TYPE_CHECKING:
    from startup.vllm_arguments.installed import InstalledVllm

_FORMAT: Final = 10
_FOLDER: Final = "starts"


@dataclass(frozen=True)
class StartKind:
    """The properties that decide which modules a start imports, and roughly how long the start takes."""

    version: str
    architecture: str
    flags: tuple[str, ...]
    python: str = platform.python_version()
    machine: str = platform.machine()
    prefix: str = sys.prefix

    @classmethod
    def of(cls, vllm: "InstalledVllm", flags: Iterable[str], model: Path | None) -> "StartKind":
        """The kind of a start with the flags `VllmLine.flags_of_modules` and this model's folder."""
        return cls(vllm.version, _architecture(model), tuple(hide_in_arguments(flags)))

    @property
    def key(self) -> str:
        """The name of files about this kind."""
        return digest((_FORMAT, self))

    def is_of_installation(self, other: "StartKind") -> bool:
        """Whether both are starts of one vLLM with one interpreter."""
        own = (self.version, self.python, self.machine, self.prefix)
        return own == (other.version, other.python, other.machine, other.prefix)


@dataclass(frozen=True)
class EarlierStart:
    """The latest successful start of one kind."""

    kind: StartKind
    model: str | None = None
    """The folder of the model. None for a model that was not on disk."""

    def save(self) -> None:
        """Keeps the start for later ones of its kind."""
        _cached(self.kind).write(asdict(self))


def earlier_start(kind: StartKind) -> EarlierStart | None:
    """The latest start of this kind, here or in the baked folder. None if there was none."""
    return _cached(kind).read(of_type(EarlierStart))


def has_started_here(kind: StartKind) -> bool:
    """Whether a start of this kind has succeeded with this cache folder."""
    return _cached(kind).path.exists()


def earlier_starts() -> list[EarlierStart]:
    """The latest start of each kind. The newest comes first, and those of the baked folder come last."""
    starts: dict[StartKind, EarlierStart] = {}
    for start in read_all(_FOLDER, of_type(EarlierStart)):
        starts.setdefault(start.kind, start)
    return list(starts.values())


def _cached(kind: StartKind) -> CachedValue:
    return CachedValue(_FOLDER, kind.key)


def _architecture(model: Path | None) -> str:
    """The model's first architecture in config.json. Empty if the file cannot be read."""
    if model is None:
        return ""
    with suppress(OSError, ValueError, TypeError, LookupError):
        return str(read_json((model / "config.json").read_bytes())["architectures"][0])
    return ""
