"""The results of a batch. Each result is appended at once, so that another run can continue the batch."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self

from base.json_depth import read_json
from base.wording import list_some
from startup.reports.timeline.live_line import draw_bar
from startup.words.errors import InputError
from vllm_cli.batch.requests import LinePlace
from vllm_cli.errors import ConnectionFailedError

_NUM_SHOWN: Final = 3

BEGINNING: Final = b'{"id":"vllm-'
"""The beginning of every line of an output file. An incomplete last line is recognised by it."""

Ending = Literal["completed", "incomplete", "interrupted"]


class RecordedResult(NamedTuple):
    """A line of an output file."""

    custom_id: str
    id: str
    is_failed: bool


class Result(NamedTuple):
    """The outcome of one request."""

    recorded: RecordedResult
    line: bytes
    usage: dict[str, Any]


def answered(place: LinePlace, status: int, content: bytes) -> Result:
    """The result for a response with any status."""
    try:
        body = read_json(content)
    except ValueError:
        text = " ".join(content.decode(errors="replace").split())[:1000]
        return rejected(
            place, text or f"The server answered {status} without a body.", status if status >= 400 else 502
        )
    # A body on one line is copied unchanged.
    raw = content.strip().decode() if b"\n" not in content.strip() else json.dumps(body)
    if status >= 400 or not isinstance(body, dict):
        return _failed(place, _response(place, status, "null"), raw)
    line = _line(place, _response(place, status, raw), "null")
    return Result(RecordedResult(place.custom_id, place.id, is_failed=False), line, body.get("usage") or {})


def rejected(place: LinePlace, message: str, status: int = 400) -> Result:
    """The result, in vLLM's format, for a request that is not sent, or for a response that cannot be read."""
    return _failed(place, _response(place, status, "null"), json.dumps(message))


def lost(place: LinePlace, code: str, message: str) -> Result:
    """The result for a request without a response."""
    return _failed(place, "null", json.dumps({"code": code, "message": message}))


def parse(line: bytes) -> RecordedResult | None:
    """Parses a line of an output file. None if the line is not a result."""
    try:
        fields = read_json(line)
        is_failed = fields["error"] is not None
        recorded = RecordedResult(fields["custom_id"], fields["id"], is_failed)
    except (ValueError, KeyError, TypeError):
        return None
    return recorded if isinstance(recorded.custom_id, str) and isinstance(recorded.id, str) else None


def _failed(place: LinePlace, response: str, error: str) -> Result:
    recorded = RecordedResult(place.custom_id, place.id, is_failed=True)
    return Result(recorded, _line(place, response, error), {})


def _response(place: LinePlace, status: int, body: str) -> str:
    return f'{{"status_code":{status},"request_id":"{place.request_id}","body":{body}}}'


def _line(place: LinePlace, response: str, error: str) -> bytes:
    custom_id = json.dumps(place.custom_id)
    return f'{{"id":"{place.id}","custom_id":{custom_id},"response":{response},"error":{error}}}\n'.encode()


class OutputFile:
    """An output file, which only one run at a time may write."""

    def __init__(self, path: Path, *, is_overwriting: bool = False) -> None:
        """Opens or creates the file, and removes a last line that a killed run left incomplete.

        Raises:
            InputError: the file cannot be used, is not an output file, or is being written by another run.
        """
        self.path = Path(os.path.realpath(path))
        self.recorded: dict[str, RecordedResult] = {}
        """custom_id -> result, in the order of the file."""
        self._ranges: dict[str, tuple[int, int]] = {}
        """custom_id -> offset and length of the result's line in the file."""
        self._num_bytes = 0
        self._file = _open_alone(self.path)
        try:
            if is_overwriting:
                self._file.truncate(0)
            self._read()
        except BaseException:
            self._file.close()
            raise

    def check_same_batch(self, ids: Mapping[str, str]) -> None:
        """Raises InputError if a result's request is not in the input, or has changed since.

        `ids`: custom_id -> the request's id.
        """
        unknown = [custom_id for custom_id in self.recorded if custom_id not in ids]
        changed = [custom_id for custom_id, known in self.recorded.items() if ids.get(custom_id, known.id) != known.id]
        for what, found in (("are not in the input", unknown), ("have changed since", changed)):
            if found:
                raise InputError(
                    f"--output-file {self.path} has results of {len(found)} requests that {what}: "
                    f"{list_some(found, _NUM_SHOWN)}. Choose another file, or --overwrite to replace it."
                )

    def append(self, result: Result) -> None:
        """Appends a result as one line.

        Raises:
            ConnectionFailedError: the result could not be written. The file is unchanged.
        """
        try:
            _write(self._file, result.line)
        except OSError as err:
            self._file.truncate(self._num_bytes)
            raise ConnectionFailedError(f"{self.path} cannot be written: {err.strerror}.") from err
        self._add(result.line, result.recorded)

    def sort(self, custom_ids: Iterable[str]) -> None:
        """Puts the results into this order. Replaces the file atomically."""
        replacement = self.path.with_name(f".{self.path.name}.sorted")
        ranges = [self._ranges[custom_id] for custom_id in custom_ids if custom_id in self._ranges]
        if ranges == list(self._ranges.values()):
            return
        try:
            with replacement.open("wb") as file:
                for offset, num_bytes in ranges:
                    file.write(os.pread(self._file.fileno(), num_bytes, offset))
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
        self.recorded[recorded.custom_id] = recorded
        self._ranges[recorded.custom_id] = (self._num_bytes, len(line))
        self._num_bytes += len(line)

    def _read(self) -> None:
        """Reads all lines and removes an incomplete last line. Raises InputError if a line is no result."""
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


def _write(file: FileIO, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


def _open_alone(path: Path) -> FileIO:
    """Opens and locks the file. Opens it again if the run that held the lock has replaced the file."""
    try:
        while True:
            file = FileIO(path, "a+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
            except OSError:
                file.close()
                raise
            file.close()
    except BlockingIOError:
        raise InputError(f"--output-file {path} is being written by another run: wait for its end.") from None
    except OSError as err:
        raise InputError(f"--output-file {path} cannot be written: {err.strerror}.") from err


@dataclass
class Tally:
    """The counts of one run. `num_skipped` requests had a result before the run began."""

    num_total: int
    num_skipped: int = 0
    num_failed_before: int = 0
    """Failed requests among the skipped ones."""
    num_succeeded: int = 0
    num_failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_retries: int = 0
    begin_s: float = field(default_factory=time.monotonic)
    """When the first request was sent."""

    def count(self, result: Result) -> None:
        if result.recorded.is_failed:
            self.num_failed += 1
        else:
            self.num_succeeded += 1
        self.prompt_tokens += _amount(result.usage, "prompt_tokens")
        self.completion_tokens += _amount(result.usage, "completion_tokens")

    @property
    def num_done(self) -> int:
        return self.num_succeeded + self.num_failed

    @property
    def num_left(self) -> int:
        return self.num_total - self.num_skipped - self.num_done

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.begin_s

    def describe(self) -> str:
        num_done = self.num_skipped + self.num_done
        failed = f", {self.num_failed} failed" if self.num_failed else ""
        rate = self.num_done / max(self.elapsed_s, 1e-9)
        eta = f", about {self.num_left / rate:.0f} s left" if rate else ""
        return f"{draw_bar(num_done / self.num_total)}  {num_done}/{self.num_total}{failed}, {rate:.1f}/s{eta}"

    def to_dict(self, ending: Ending) -> dict[str, Any]:
        """The summary that `--json` prints."""
        elapsed_s = max(self.elapsed_s, 1e-9)
        return {
            "status": ending,
            "total": self.num_total,
            "succeeded": self.num_succeeded,
            "failed": self.num_failed,
            "skipped": self.num_skipped,
            "skipped_failed": self.num_failed_before,
            "remaining": self.num_left,
            "retries": self.num_retries,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "elapsed_s": round(elapsed_s, 3),
            "requests_per_s": round(self.num_done / elapsed_s, 3),
            "completion_tokens_per_s": round(self.completion_tokens / elapsed_s, 3),
        }


def _amount(usage: dict[str, Any], name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) else 0
