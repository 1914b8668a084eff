"""The results on disk: each is appended and synced at once, so that a kill loses and repeats none."""

import asyncio
import fcntl
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, Self

from vllm_cli.batch.lines import BEGINNING, RecordedResult, Result, parse
from vllm_cli.errors import ConnectionFailedError, InputError

_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
_NUM_SHOWN: Final = 3


class _Place(NamedTuple):
    offset: int
    num_bytes: int
    recorded: RecordedResult


class OutputFile:
    """Locked by one run at a time."""

    def __init__(self, path: Path, *, is_overwriting: bool = False) -> None:
        """Opens or creates the file, and repairs a last line that a killed run left incomplete.

        Raises:
            InputError: the file cannot be used, is not an output file, or is locked by another run.
        """
        self.path = Path(os.path.realpath(path))
        self._replacement = self.path.with_name(f".{self.path.name}.anew")
        self._fd = self._open()
        try:
            self._replacement.unlink(missing_ok=True)  # left by a killed run
            if is_overwriting:
                os.ftruncate(self._fd, 0)
            self._places = self._read()
        except BaseException:
            os.close(self._fd)
            raise
        self._num_bytes = os.fstat(self._fd).st_size

    @property
    def recorded(self) -> Mapping[str, RecordedResult]:
        """The results by custom_id."""
        return {custom_id: place.recorded for custom_id, place in self._places.items()}

    def append(self, results: Sequence[Result]) -> None:
        """Writes whole lines and waits until they are synced.

        Raises:
            ConnectionFailedError: none of them was written; the file is unchanged.
        """
        try:
            _write(self._fd, b"".join(result.line for result in results))
            os.fdatasync(self._fd)
        except OSError as err:
            os.ftruncate(self._fd, self._num_bytes)
            raise ConnectionFailedError(f"{self.path} cannot be written: {err.strerror}.") from err
        for result in results:
            self._places[result.recorded.custom_id] = _Place(self._num_bytes, len(result.line), result.recorded)
            self._num_bytes += len(result.line)

    def keep(self, custom_ids: Iterable[str]) -> None:
        """Atomically replaces the file by one with these results only, in this order."""
        wanted = [self._places[custom_id] for custom_id in custom_ids if custom_id in self._places]
        if wanted == list(self._places.values()):
            return
        try:
            fd = self._copy(wanted)
        except OSError as err:
            self._replacement.unlink(missing_ok=True)
            raise ConnectionFailedError(f"{self.path} cannot be rewritten: {err.strerror}.") from err
        os.close(self._fd)
        self._fd = fd
        self._places = self._read()
        self._num_bytes = os.fstat(self._fd).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def _copy(self, places: Iterable[_Place]) -> int:
        """Replaces this file by a locked file with these lines; returns its descriptor."""
        fd = os.open(self._replacement, _CREATE | os.O_TRUNC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            for place in places:
                _write(fd, os.pread(self._fd, place.num_bytes, place.offset))
            os.fchmod(fd, os.fstat(self._fd).st_mode & 0o777)
            os.fsync(fd)
            os.replace(self._replacement, self.path)  # noqa: PTH105 - documented as atomic
            _sync_folder(self.path.parent)
        except OSError:
            os.close(fd)
            raise
        return fd

    def _open(self) -> int:
        """Opens and locks; opens again if another run replaced the file in between."""
        while True:
            try:
                fd = os.open(self.path, _CREATE, 0o666)
            except OSError as err:
                raise InputError(f"--output-file {self.path} cannot be written: {err.strerror}.") from err
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(fd), os.stat(self.path)):  # noqa: PTH116 - fits fstat
                    _sync_folder(self.path.parent)
                    return fd
            except BlockingIOError:
                os.close(fd)
                raise InputError(f"--output-file {self.path} is being written by another run.") from None
            except FileNotFoundError:
                pass
            except OSError as err:
                os.close(fd)
                raise InputError(f"--output-file {self.path} cannot be used: {err.strerror}.") from err
            os.close(fd)

    def _read(self) -> dict[str, _Place]:
        places: dict[str, _Place] = {}
        offset = 0
        with open(self._fd, "rb", closefd=False) as file:
            file.seek(0)
            for number, line in enumerate(file, 1):
                known = parse(line)
                if known is None:
                    self._drop_torn_line(file, offset, line, number)
                    break
                if not line.endswith(b"\n"):
                    _write(self._fd, b"\n")
                    line += b"\n"
                places[known.custom_id] = _Place(offset, len(line), known)
                offset += len(line)
        return places

    def _drop_torn_line(self, file: BinaryIO, offset: int, line: bytes, number: int) -> None:
        """Removes an incomplete last result; raises for any other line that is not a result."""
        is_torn = not line.endswith(b"\n") and line[: len(BEGINNING)] == BEGINNING[: len(line)]
        if not is_torn or file.read(1):
            raise InputError(
                f"--output-file {self.path}: line {number} is not a result of a batch. "
                "Choose another file, or --overwrite to replace it."
            )
        os.ftruncate(self._fd, offset)


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


def _write(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def _sync_folder(folder: Path) -> None:
    """Syncs the folder, so that the file's name is on the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError:  # not supported by some file systems
        pass
    finally:
        os.close(fd)


class _Waiting(NamedTuple):
    result: Result
    written: asyncio.Future[None]


class ResultWriter:
    """One task appends to the file; `write` returns when the result is synced."""

    def __init__(self, file: OutputFile, on_written: Callable[[Result], None]) -> None:
        self._file = file
        self._on_written = on_written
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._task = asyncio.create_task(self._run(), name="result-writer")

    async def write(self, result: Result) -> None:
        """Raises the error of the write."""
        waiting = _Waiting(result, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(waiting)
        await waiting.written

    async def close(self) -> None:
        """Writes the rest, also results of cancelled callers."""
        await self._queue.join()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get_nowait())
            try:
                await asyncio.to_thread(self._file.append, [waiting.result for waiting in batch])
            except Exception as err:  # noqa: BLE001 - `write` raises it
                _settle(batch, err)
            else:
                for waiting in batch:
                    self._on_written(waiting.result)
                _settle(batch, None)
            for _ in batch:
                self._queue.task_done()


def _settle(batch: list[_Waiting], err: Exception | None) -> None:
    for waiting in batch:
        if waiting.written.done():
            continue
        if err is None:
            waiting.written.set_result(None)
        else:
            waiting.written.set_exception(err)
