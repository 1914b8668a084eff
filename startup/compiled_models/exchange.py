"""Files through which the processes of a start exchange facts about the compiled model."""

import fcntl
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

_POLLED_EVERY_S: Final = 0.02


@dataclass
class CompiledEvent:
    """A worker's facts about a compiled model: whether the worker loaded, used or compiled it, and why."""

    key: str
    rank: str
    """The name of the rank's folder in vLLM's cache. A rank is the position of a worker among all workers."""
    digest: str = ""
    """A digest of all values that vLLM hashed when it looked for the compiled model."""
    loaded_s: float | None = None
    is_used: bool = False
    """Whether the loaded model has run once. Later failures do not count against the model."""
    compiled_s: float | None = None
    error: str = ""
    """vLLM's reason for not loading the model. Empty if it has loaded the model or has not tried to."""
    more: str = ""
    """A further folder that vLLM has chosen for files of the model. Empty if there is no such folder."""
    sources: dict[str, str] = field(default_factory=dict)
    """Module -> SHA-256 of its source file, for all traced modules."""


class Exchange:
    """Reads and writes the exchanged files. The launcher and each worker have an object of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.found_folder = folder / "found"
        """The folder for copies of the records that were found in locations."""
        self._lock = folder / "compiled.lock"
        self._required = folder / "compiled.required"
        self._early = folder / "compiled.early"
        self._answer = folder / "compiled.answer"

    def hold_load(self, hardware: str, *, is_required: bool) -> int:
        """The launcher calls this. Until it closes the returned descriptor, no worker loads a compiled model.

        `hardware` (`local.claim_keys`) is added to vLLM's keys. If `is_required`, workers also wait for
        `answer`.
        """
        if is_required:
            self._required.touch()
        fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(fd, hardware.encode())
        return fd

    def wait_for_load(self) -> None:
        """A worker calls this. While a compiled model is being fetched, waits until the fetch is complete."""
        with suppress(OSError), self._lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)

    def read_hardware(self) -> str:
        """A worker calls this. Returns the text `hardware` of the call of `hold_load`."""
        return self._lock.read_text() if self._lock.exists() else ""

    def report_early(self, *, compiles: bool, digest: str, factors: Mapping[str, Any]) -> str | None:
        """Each worker calls this before it loads the model. The first worker's report is kept.

        Returns why the start must end here, or None if the start goes on.
        """
        beside = self._early.with_suffix(f".{os.getpid()}")
        report = {"compiles": compiles, "digest": digest, "factors": factors}
        # The report precedes the wait, because the launcher answers what the report says. Unlike a rename, a
        # link fails if another worker's report is there.
        with suppress(OSError):
            beside.write_text(json.dumps(report))
            os.link(beside, self._early)
        while compiles and self._required.exists() and not self._answer.exists():
            time.sleep(_POLLED_EVERY_S)
        if not self._answer.exists():
            return None
        return self._answer.read_text() or None

    def read_early(self) -> dict[str, Any] | None:
        """The first report of a worker. None if no worker has reported."""
        with suppress(OSError, ValueError):
            content: dict[str, Any] = json.loads(self._early.read_bytes())
            return content
        return None

    def answer(self, refusal: str) -> None:
        """The launcher calls this. `refusal` says why the start must end. It is empty if it goes on."""
        beside = self._answer.with_suffix(".new")
        beside.write_text(refusal)
        beside.replace(self._answer)

    def note(self, path: str, **fields: Any) -> None:
        """A worker calls this. Adds facts about the compiled model with the path `.../KEY/RANK/model`."""
        line = json.dumps({"path": path, **fields})
        path_of_events = self._folder / f"compiled.{os.getpid()}.events"
        with suppress(OSError), path_of_events.open("a") as file:
            file.write(f"{line}\n")

    def events(self) -> list[CompiledEvent]:
        """The workers' facts. There is one event for each compiled model and worker."""
        found: dict[str, CompiledEvent] = {}
        for file in sorted(self._folder.glob("compiled.*.events")):
            for line in file.read_text().splitlines():
                with suppress(ValueError, TypeError, KeyError, IndexError):
                    fields = json.loads(line)
                    path = fields.pop("path")
                    key, rank = Path(path).parts[-3:-1]
                    event = found.setdefault(path, CompiledEvent(key, rank))
                    vars(event).update(fields)
        return list(found.values())
