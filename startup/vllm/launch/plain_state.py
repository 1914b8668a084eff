"""Remembers that starts of one kind do not preload for a while, because code of this package has failed."""

import platform
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Final

from startup.reports.timeline.history import installed_versions
from startup.storage.caches import CachedValue, of_type, read_all
from startup.vllm.start_kind import StartKind

_FOLDER: Final = "plain"
ENABLE: Final = "vllm-cli caches prune --plain-starts"
_FIRST_S: Final = 3600.0
_NEXT_S: Final = 86400.0
_REMEMBERED_S: Final = 7 * 86400.0
"""Seconds after which a failure of preloading is forgotten."""
_DISTRIBUTION: Final = "vllm-cli-server"


@dataclass(frozen=True)
class PlainState:
    """Records that starts of one kind on one host do not preload, because code of this package has failed."""

    kind: StartKind
    host: str
    reason: str
    end_s: float
    """The end of this state, in seconds since 1970."""

    @property
    def end(self) -> str:
        """Says when starts preload again, and how the user ends the state earlier."""
        end = datetime.fromtimestamp(self.end_s, UTC)
        return f"it preloads again from {end:%Y-%m-%d %H:%M} UTC on, or after `{ENABLE}`"

    @property
    def holds(self) -> bool:
        """Whether the state still holds. A state that was written while the clock was ahead does not hold."""
        return 0 < self.end_s - time.time() <= _NEXT_S

    def __str__(self) -> str:
        return f"{self.reason}; {self.end}"


def plain_state(kind: StartKind) -> PlainState | None:
    """The state that keeps this kind of start from preloading. None if the start preloads.

    The state applies only to this Python, vLLM and package.
    """
    state = _cached(kind).read(of_type(PlainState), is_own=True)
    return state if state is not None and state.holds else None


def plain_states() -> list[PlainState]:
    """The states that hold, of all hosts that share the cache folder."""
    return [state for state in read_all(_FOLDER, of_type(PlainState)) if state.holds]


def disable_preloading(kind: StartKind, reason: str) -> PlainState:
    """Turns preloading off for an hour after our code has failed, and for a day after a further failure."""
    cached = _cached(kind)
    lasts_s = _FIRST_S if cached.read(of_type(PlainState), is_own=True) is None else _NEXT_S
    state = PlainState(kind, platform.node(), reason, time.time() + lasts_s)
    cached.write(asdict(state))
    return state


def forget_failure(kind: StartKind) -> None:
    """Makes the next start preload. Called if preloading has worked, or if a start without it has failed."""
    _cached(kind).remove()


def _cached(kind: StartKind) -> CachedValue:
    own = installed_versions((_DISTRIBUTION,)).get(_DISTRIBUTION)
    return CachedValue(_FOLDER, (sys.version, kind.key, platform.node()), own, _REMEMBERED_S)
