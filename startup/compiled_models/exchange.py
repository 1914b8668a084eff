"""Files in the start's folder, through which a start's processes exchange facts about the compiled model."""

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
    """What a worker did with one compiled model: loaded, used or compiled it, and why it did not load it."""

    key: str
    rank: str
    """The name of the rank's folder in vLLM's cache."""
    digest: str = ""
    """The digest of everything that vLLM hashed when it looked for the model."""
    loaded_s: float | None = None
    is_used: bool = False
    """Whether the loaded model has computed something: later failures are not its fault."""
    compiled_s: float | None = None
    error: str = ""
    """Why vLLM could not load it, in vLLM's words. Empty if it did not try or did not fail."""
    damaged: str | None = None
    """A file that has changed since it was recorded, if that is why vLLM could not load the model."""
    more: str = ""
    """A further folder that vLLM has chosen for it."""
    sources: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the traced source files, by module."""


class Exchange:
    """Reads and writes the files. The launcher and each worker create their own object."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.found_folder = folder / "found"
        """The folder for records that were found in locations."""
        self._lock = folder / "compiled.lock"
        self._required = folder / "compiled.required"
        self._early = folder / "compiled.early"
        self._answer = folder / "compiled.answer"

    def hold_load(self, hardware: str, *, is_required: bool) -> int:
        """Called by the launcher: workers do not look for a compiled model until this descriptor is closed.

        vLLM's keys get `hardware` (`local.claim_keys`). With `is_required`, workers wait for `answer`.
        """
        if is_required:
            self._required.touch()
        fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(fd, hardware.encode())
        return fd

    def wait_for_load(self) -> None:
        """Called by a worker. Returns once the compiled model has arrived, if one is being fetched."""
        with suppress(OSError), self._lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)

    def read_hardware(self) -> str:
        """Called by a worker. Returns the text that `hold_load` got."""
        return self._lock.read_text() if self._lock.exists() else ""

    def report_early(self, *, compiles: bool, digest: str, factors: Mapping[str, Any]) -> str | None:
        """Called by each worker before it loads the model. Only the first worker's report is kept.

        Returns:
            Why the start must end here. None if it goes on.
        """
        beside = self._early.with_suffix(f".{os.getpid()}")
        with suppress(OSError):
            beside.write_text(json.dumps({"compiles": compiles, "digest": digest, "factors": factors}))
            os.link(beside, self._early)
        while compiles and self._required.exists() and not self._answer.exists():
            time.sleep(_POLLED_EVERY_S)
        return self._answer.read_text() or None if self._answer.exists() else None

    def has_early(self) -> bool:
        """Whether a worker has reported its configuration."""
        return self._early.exists()

    def read_early(self) -> dict[str, Any] | None:
        """The first worker's report. None if there is none yet."""
        with suppress(OSError, ValueError):
            content: dict[str, Any] = json.loads(self._early.read_bytes())
            return content
        return None

    def answer(self, refusal: str) -> None:
        """Called by the launcher: answers why the start must end, or with an empty text to let it go on."""
        beside = self._answer.with_suffix(".new")
        beside.write_text(refusal)
        beside.replace(self._answer)

    def note(self, path: str, **fields: Any) -> None:
        """Called by a worker: adds facts about the compiled model with this path, `.../KEY/RANK/model`."""
        line = json.dumps({"path": path, **fields})
        with suppress(OSError), (self._folder / f"compiled.{os.getpid()}.events").open("a") as file:
            file.write(f"{line}\n")

    def events(self) -> list[CompiledEvent]:
        """The workers' facts, as one event for each compiled model and worker."""
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
