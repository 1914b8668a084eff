"""How many CUDA graphs the engines of a start have captured. Each engine writes a file for it."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from base.json_depth import read_json
from base.machine.files import write_whole
from envs.registry import env

_NAME: Final = "cuda-graphs-{}.json"
_STOPPING: Final = "cuda-graphs.stop"
"""The file that exists once the server drains."""


class GraphProgress(NamedTuple):
    """The graphs of one engine, or of all engines of a start."""

    captured: int
    total: int
    is_late: bool = False
    """Whether graphs are captured after readiness."""
    num_given_up: int = 0
    """The graphs that are not captured, because a capture has failed."""
    reason: str = ""
    """Why graphs are given up, or why none is captured for now."""

    @property
    def is_pending(self) -> bool:
        """Whether graphs are still to be captured."""
        return self.captured + self.num_given_up < self.total

    def to_fields(self) -> dict[str, Any]:
        state = "capturing" if self.is_pending else "incomplete" if self.num_given_up else "complete"
        fields = {"captured": self.captured, "total": self.total, "state": state}
        return {**fields, "reason": self.reason} if self.reason else fields

    def write(self, engine: int) -> None:
        """Replaces the progress of the engine with this number, if this process belongs to a start."""
        folder = env.VCLI_START_FOLDER.get()
        if folder is not None:
            with suppress(OSError):
                write_whole(Path(folder) / _NAME.format(engine), json.dumps(self._asdict()))


def read_progress(folder: Path) -> GraphProgress | None:
    """The progress of all engines of a start. None if none of them has graphs."""
    found = [each for path in folder.glob(_NAME.format("*")) if (each := _read(path)) is not None]
    if not found:
        return None
    reason = next((each.reason for each in found if each.reason), "")
    captured, total, is_late, num_given_up = (sum(column) for column in zip(*(each[:4] for each in found), strict=True))
    return GraphProgress(captured, total, bool(is_late), num_given_up, reason)


def stop_capturing(folder: Path) -> None:
    """Makes the engines of this start capture no more graphs."""
    with suppress(OSError):
        (folder / _STOPPING).touch(mode=0o600)


def is_stopped() -> bool:
    """Whether this engine's server drains."""
    folder = env.VCLI_START_FOLDER.get()
    return folder is not None and (Path(folder) / _STOPPING).exists()


def _read(path: Path) -> GraphProgress | None:
    with suppress(OSError, ValueError, TypeError):
        return GraphProgress(**read_json(path.read_text()))
    return None
