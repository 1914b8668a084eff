"""Reports a download's progress, rate and remaining time, as a live line and periodically in the log."""

import io
import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

from server.wording import format_bytes

logger = logging.getLogger(__name__)

Show = Callable[[str], None]
"""Takes a short text that replaces the previous one; an empty text at the end."""

_SHOWN_EVERY_S: Final = 0.2
_LOGGED_EVERY_S: Final = 10.0
_RATE_OVER_S: Final = 5.0


class DownloadProgress:
    """Counts the bytes that the hub's client downloads while the block runs; a thread reports them."""

    def __init__(self, name: str, total_bytes: int | None, show: Show, *, logged_every_s: float = _LOGGED_EVERY_S):
        self._name = name
        self._total_bytes = total_bytes
        self._show = show
        self._logged_every_s = logged_every_s
        self._bars: list[Any] = []
        self._begin_s = time.monotonic()
        self._history = [(self._begin_s, 0)]
        self._first_bytes: int | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="download-progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._show("")
        took_s = time.monotonic() - self._begin_s
        if err is None:
            logger.info("downloaded %s of %s in %.1f s", format_bytes(self.num_bytes), self._name, took_s)

    @property
    def num_bytes(self) -> int:
        """Bytes received so far, written to disk or not."""
        return max((int(bar.n) for bar in self._bars), default=0)

    @property
    def bar_class(self) -> type[Any]:
        """Bars that count and print nothing, for the argument `tqdm_class` of the hub's functions."""
        from tqdm import tqdm  # noqa: PLC0415 - needed only for downloads

        bars = self._bars

        class CountingBar(tqdm):  # type: ignore[misc] # it has no types
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **{**kwargs, "file": io.StringIO(), "mininterval": 3600.0, "disable": False})
                if self.unit == "B":
                    bars.append(self)

        return CountingBar

    def __str__(self) -> str:
        """`1.2 GiB of 3.4 GiB, 25.0 MiB/s, about 90 s left`"""
        now, done = self._sample()
        parts = [format_bytes(done)]
        if self._total_bytes:
            parts = [f"{format_bytes(done)} of {format_bytes(self._total_bytes)}"]
        since, before = self._history[0]
        rate = (done - before) / (now - since) if now > since else 0.0
        parts.append(f"{format_bytes(rate)}/s")
        if self._total_bytes and rate > 0:
            parts.append(f"about {max(self._total_bytes - done, 0) / rate:.0f} s left")
        return ", ".join(parts)

    def _sample(self) -> tuple[float, int]:
        """The time and the bytes received; kept for the rate."""
        now, done = time.monotonic(), self.num_bytes
        if self._first_bytes is None and done:
            # Bytes of an earlier, interrupted download appear at once; they are excluded from the rate.
            self._first_bytes = done
            self._history = [(now, done)]
        self._history.append((now, done))
        while self._history[1][0] < now - _RATE_OVER_S:
            del self._history[0]
        return now, done

    def _run(self) -> None:
        logged_s = time.monotonic()
        while not self._over.wait(_SHOWN_EVERY_S):
            text = str(self)
            self._show(text)
            if time.monotonic() - logged_s >= self._logged_every_s:
                logged_s = time.monotonic()
                logger.info("downloading %s: %s", self._name, text)
