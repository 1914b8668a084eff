"""Downloads from Xet storage, in a helper process of the download: its library may hang and cannot be ended.

The child is killed when it delivers nothing for the time limit; the rest is then fetched over plain HTTP.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

from startup.files.download.repository import PART_ENDING, CachedRepository, HubFile
from startup.files.download.transfer import Source
from startup.ground.processes.helper import Helper, HelperEndedError, Send

logger = logging.getLogger(__name__)

_NUM_THREADS: Final = 4
_LEAST_BYTES: Final = 8 << 20
"""Smaller files are not worth the request that tells whether Xet has them."""
_TICK_S: Final = 0.25
_READ_BYTES: Final = 1 << 20
_ENDING: Final = f".xet{PART_ENDING}"


@dataclass(frozen=True, kw_only=True)
class _XetJob:
    """What the child fetches."""

    files: tuple[tuple[str, str, int], ...]
    """Address, path to write to and size of each file."""
    headers: dict[str, str]
    endpoint: str


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
        outcome = "has delivered nothing for a while"
        child = self._start_child()
        try:
            last_s = time.monotonic()
            while time.monotonic() - last_s < self._source.client.stall_s:
                if (event := child.receive(_TICK_S)) is not None:
                    last_s = time.monotonic()
                    self._take(event)
                yield
        except HelperEndedError:
            outcome = "does not deliver all files"
        finally:
            child.close()
            self._remove_parts()
        if self._files:
            logger.warning("Xet storage %s for %s", outcome, self._source.repo_id)

    def _take(self, event: object) -> None:
        """Of the child: how many bytes it has received, or the hash of a complete file."""
        if isinstance(event, int):
            self.fetched_bytes = event
        else:
            self._keep(next(file for file in self._files if file.oid == event))

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

    def _start_child(self) -> Helper:
        source = self._source
        files = tuple((source.address(file).url, str(self._part(file)), file.size or 0) for file in self._files)
        job = _XetJob(files=files, headers=source.client.headers, endpoint=source.endpoints[0])
        return Helper("xet", "startup.files.download.xet:run", job)


def _is_available() -> bool:
    try:
        from huggingface_hub.utils._runtime import is_xet_available
    except ImportError:
        return False
    return bool(is_xet_available())


def run(job: _XetJob, send: Send) -> None:
    """The job of the child: fetches files; sends how many bytes it has received, and what is complete."""
    waiting: SimpleQueue[tuple[str, str, int]] = SimpleQueue()
    for file in job.files:
        waiting.put(file)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the library writes there
    counter = _Counter(send)
    threads = [
        threading.Thread(target=_fetch_all, args=(job, waiting, counter), daemon=True) for _ in range(_NUM_THREADS)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(_TICK_S)
        counter.send_bytes()


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
            counter.send(Path(path).name.removesuffix(_ENDING))
    except Exception:  # noqa: BLE001 - none is left, or one failed: the helper fetches the rest in another way
        return


class _Counter:
    """Counts what the library's progress bars are told."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self._bars: list[Any] = []
        self._sent = -1

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

    def send_bytes(self) -> None:
        """Sends the number of bytes from the network, if they or those on disk have changed."""
        num_changes = sum(int(bar.n) for bar in self._bars)
        if num_changes != self._sent:
            self._sent = num_changes
            from_network = [bar for bar in self._bars if bar.is_network]
            self.send(sum(int(bar.n) for bar in from_network or self._bars))
