"""Downloads from Xet storage, in a child process of the helper: its library may hang and cannot be ended.

The child is killed when it delivers nothing for the time limit; the rest is then fetched over plain HTTP.
"""

import logging
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final

from envs.redaction import without_login
from startup.download.repository import PART_ENDING, CachedRepository, HubFile
from startup.download.transfer import Source
from startup.processes import death_pipe, group_signals

logger = logging.getLogger(__name__)

_NUM_THREADS: Final = 4
_LEAST_BYTES: Final = 8 << 20
"""Smaller files are not worth the request that tells whether Xet has them."""
_TICK_S: Final = 0.25
_READ_BYTES: Final = 1 << 20
_REASONS: Final = {"stalled": "has delivered nothing for a while", "ended": "does not deliver all files"}
_ENDING: Final = f".xet{PART_ENDING}"


@dataclass(frozen=True, kw_only=True)
class _XetJob:
    """What the child gets on its standard input."""

    files: tuple[tuple[str, str, int], ...]
    """Address, path to write to and size of each file."""
    headers: dict[str, str]
    endpoint: str
    parent_pid: int


class XetFetch:
    """The files of a repository that Xet storage has; used on the main thread of the helper."""

    def __init__(self, source: Source, repository: CachedRepository, files: Sequence[HubFile]) -> None:
        self._source = source
        self._repository = repository
        self._files = list(files)
        self.fetched_bytes = 0
        """Bytes received so far."""

    @classmethod
    def of(cls, source: Source, repository: CachedRepository, files: Sequence[HubFile]) -> "XetFetch | None":
        """None if Xet is not installed or switched off, or does not have the largest file."""
        large = [file for file in files if file.is_large and (file.size or 0) >= _LEAST_BYTES]
        large = [file for file in large if not repository.part_bytes(file)]  # plain HTTP resumes these
        if not large or not _is_available():
            return None
        largest = max(large, key=lambda file: file.size or 0)
        if not source.client.has_in_xet(source.address(largest)):
            return None
        return cls(source, repository, large)

    def run(self) -> Iterator[None]:
        """Fetches and verifies the files; yields several times a second.

        Files that are not there at the end have to be fetched in another way.
        """
        outcome = "stalled"
        with self._start_child() as child:
            try:
                last_s, rest = time.monotonic(), b""
                assert child.stdout is not None
                while time.monotonic() - last_s < self._source.client.stall_s:
                    if select.select([child.stdout], [], [], _TICK_S)[0]:
                        received = os.read(child.stdout.fileno(), 1 << 16)
                        if not received:
                            outcome = "ended"
                            break
                        last_s = time.monotonic()
                        *lines, rest = (rest + received).split(b"\n")
                        for line in lines:
                            self._take(line)
                    yield
            finally:
                child.kill()
                self._remove_parts()
        if self._files:
            logger.warning("Xet storage %s for %s", _REASONS[outcome], self._source.repo_id)

    def _take(self, line: bytes) -> None:
        """A line of the child: the bytes that it has received, or the number of a complete file."""
        kind, _, number = line.partition(b" ")
        if kind == b"bytes":
            self.fetched_bytes = int(number)
        elif kind == b"file":
            self._keep(next(file for file in self._files if file.oid == number.decode()))

    def _keep(self, file: HubFile) -> None:
        """Verifies a file and makes it visible."""
        part, digest = self._part(file), file.digest()
        assert digest is not None
        with part.open("rb") as content:
            while chunk := content.read(_READ_BYTES):
                digest.update(chunk)
        self._files.remove(file)
        if digest.hexdigest() == file.oid:
            os.replace(part, self._repository.blob(file))  # noqa: PTH105 - documented as atomic

    def _part(self, file: HubFile) -> Path:
        return self._repository.blob(file).with_name(f"{file.oid}{_ENDING}")

    def _remove_parts(self) -> None:
        """What Xet has written cannot be resumed: it writes in any order."""
        for path in (self._repository.folder / "blobs").glob(f"*{_ENDING}"):
            path.unlink(missing_ok=True)

    def _start_child(self) -> "subprocess.Popen[bytes]":
        from startup.download.process import helper_command

        source = self._source
        files = tuple((source.address(file).url, str(self._part(file)), file.size or 0) for file in self._files)
        job = _XetJob(files=files, headers=source.client.headers, endpoint=source.endpoints[0], parent_pid=os.getpid())
        child = subprocess.Popen(
            helper_command("startup.download.xet"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert child.stdin is not None
        with suppress(BrokenPipeError), child.stdin:
            pickle.dump(job, child.stdin)
        return child


def _is_available() -> bool:
    try:
        from huggingface_hub.utils._runtime import is_xet_available
    except ImportError:
        return False
    return bool(is_xet_available())


def main() -> None:
    """The child process: fetches the files of the job and tells the bytes received; ends with an error."""
    job: _XetJob = pickle.load(sys.stdin.buffer)
    death_pipe.follow_parent(job.parent_pid)
    group_signals.ignore()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    waiting: SimpleQueue[tuple[str, str, int]] = SimpleQueue()
    for file in job.files:
        waiting.put(file)
    counter = _Counter()
    threads = [
        threading.Thread(target=_fetch_all, args=(job, waiting, counter), daemon=True) for _ in range(_NUM_THREADS)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(_TICK_S)
        counter.tell()
    os._exit(0)


def _fetch_all(job: _XetJob, waiting: "SimpleQueue[tuple[str, str, int]]", counter: "_Counter") -> None:
    from huggingface_hub.file_download import get_hf_file_metadata, xet_get

    try:
        while True:
            url, path, size = waiting.get_nowait()
            metadata = get_hf_file_metadata(url, headers=job.headers, token=False, endpoint=job.endpoint)
            if metadata.xet_file_data is None:
                continue
            Path(path).touch()
            xet_get(
                incomplete_path=Path(path),
                xet_file_data=metadata.xet_file_data,
                headers=job.headers,
                expected_size=size,
                tqdm_class=counter.bar_class,
            )
            counter.tell_file(Path(path).name.removesuffix(_ENDING))
    except Empty:
        return
    except Exception as err:  # noqa: BLE001 - the helper fetches the rest in another way
        sys.stderr.write(f"{without_login(str(err))}\n")


class _Counter:
    """Counts what the library's progress bars are told."""

    def __init__(self) -> None:
        self._bars: list[Any] = []
        self._told = -1

    @property
    def bar_class(self) -> type[Any]:
        """A bar that prints nothing; the network's and the disk's bar of a file are two of them."""
        bars = self._bars

        class CountingBar:
            def __init__(self, *_: Any, desc: str = "", total: int | None = None, **__: Any) -> None:
                self.n, self.total, self.is_network = 0, total, "downloading" in desc
                bars.append(self)

            def update(self, increment: int = 1) -> None:
                self.n += increment

            def __getattr__(self, _: str) -> Any:
                return lambda *_, **__: None

        return CountingBar

    def tell(self) -> None:
        """Writes the bytes from the network, if they or those on disk have changed."""
        num_changes = sum(int(bar.n) for bar in self._bars)
        if num_changes != self._told:
            self._told = num_changes
            from_network = [bar for bar in self._bars if bar.is_network]
            os.write(1, b"bytes %d\n" % sum(int(bar.n) for bar in from_network or self._bars))

    def tell_file(self, oid: str) -> None:
        """Writes that a file is complete."""
        os.write(1, b"file %s\n" % oid.encode())
