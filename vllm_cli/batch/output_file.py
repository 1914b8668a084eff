"""The results on disk: each is appended at once, so that a second run continues where the first one ended."""

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, Self

from vllm_cli.batch.lines import BEGINNING, RecordedResult, Result, parse
from vllm_cli.errors import ConnectionFailedError, InputError

_NUM_SHOWN: Final = 3


class _Place(NamedTuple):
    offset: int
    num_bytes: int
    recorded: RecordedResult


class OutputFile:
    """Written by one run at a time."""

    def __init__(self, path: Path, *, is_overwriting: bool = False) -> None:
        """Opens or creates the file, and removes a last line that a killed run left incomplete.

        Raises:
            InputError: the file cannot be used, or is not an output file.
        """
        self.path = Path(os.path.realpath(path))
        self._places: dict[str, _Place] = {}
        self._num_bytes = 0
        try:
            self._file = open(self.path, "ab+", buffering=0)  # noqa: SIM115, PTH123 - a run's `with` closes it
        except OSError as err:
            raise InputError(f"--output-file {self.path} cannot be written: {err.strerror}.") from err
        try:
            if is_overwriting:
                self._file.truncate(0)
            self._read()
        except BaseException:
            self._file.close()
            raise

    @property
    def recorded(self) -> Mapping[str, RecordedResult]:
        """The results by custom_id."""
        return {custom_id: place.recorded for custom_id, place in self._places.items()}

    def append(self, result: Result) -> None:
        """Writes a whole line.

        Raises:
            ConnectionFailedError: it was not written; the file is unchanged.
        """
        try:
            _write(self._file, result.line)
        except OSError as err:
            self._file.truncate(self._num_bytes)
            raise ConnectionFailedError(f"{self.path} cannot be written: {err.strerror}.") from err
        self._add(result.line, result.recorded)

    def sort(self, custom_ids: Iterable[str]) -> None:
        """Atomically replaces the file by one with the results in this order."""
        replacement = self.path.with_name(f".{self.path.name}.sorted")
        places = [self._places[custom_id] for custom_id in custom_ids if custom_id in self._places]
        if places == list(self._places.values()):
            return
        try:
            with replacement.open("wb") as file:
                for place in places:
                    file.write(os.pread(self._file.fileno(), place.num_bytes, place.offset))
            shutil.copymode(self.path, replacement)
            replacement.replace(self.path)
        except OSError as err:
            replacement.unlink(missing_ok=True)
            raise ConnectionFailedError(f"{self.path} cannot be rewritten: {err.strerror}.") from err

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _add(self, line: bytes, recorded: RecordedResult) -> None:
        self._places[recorded.custom_id] = _Place(self._num_bytes, len(line), recorded)
        self._num_bytes += len(line)

    def _read(self) -> None:
        """Reads the lines; an incomplete last one is removed, any other that is not a result is an error."""
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                recorded = parse(line) if line.endswith(b"\n") else None
                if recorded is not None:
                    self._add(line, recorded)
                elif line.endswith(b"\n") or line[: len(BEGINNING)] != BEGINNING[: len(line)]:
                    raise InputError(
                        f"--output-file {self.path}: line {number} is not a result of a batch. "
                        "Choose another file, or --overwrite to replace it."
                    )
        self._file.truncate(self._num_bytes)


def check_same_batch(path: Path, known: Mapping[str, RecordedResult], ids: Mapping[str, str]) -> None:
    """Raises an InputError if a result has no request in the input; `ids` are the input's."""
    unknown = [custom_id for custom_id in known if custom_id not in ids]
    changed = [custom_id for custom_id, result in known.items() if ids.get(custom_id, result.id) != result.id]
    for what, found in (("are not in the input", unknown), ("have changed since", changed)):
        if found:
            shown = ", ".join(found[:_NUM_SHOWN]) + (", ..." if len(found) > _NUM_SHOWN else "")
            raise InputError(
                f"--output-file {path} has results of {len(found)} requests that {what}: {shown}. "
                "Choose another file, or --overwrite to replace it."
            )


def _write(file: BinaryIO, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]
