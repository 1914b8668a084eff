"""What goes wrong at the stand-in for the hub, and how often."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Final

BODY_FAULTS: Final = ("stall", "cut", "short", "wrong")
"""Faults of the body of a file; `status` replaces any answer."""


@dataclass
class Fault:
    """One fault; it is used up after so many requests.

    stall: after `after` bytes of the response nothing more is sent, and the connection stays open.
    cut: after `after` bytes of the response the connection is closed.
    short: the file has only `after` bytes, and the headers agree.
    wrong: the byte at `after` differs.
    status: the answer is `status`, with the hub's error `code` and `retry_after` seconds if given.
    """

    kind: str
    times: int | None = 1
    """None: always."""
    path: str = "*"
    """A pattern of the repository and file, such as `org/model/*.safetensors`; of `status` one of a request's
    whole path, such as `api/*`, `*/resolve/*` or `*.safetensors`."""
    method: str = "*"
    after: int = 0
    status: int = 504
    code: str = ""
    retry_after: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in (*BODY_FAULTS, "status"):
            raise ValueError(f"a fault is one of {', '.join(BODY_FAULTS)} or status, got {self.kind!r}")
        if self.kind in BODY_FAULTS:
            self.method = "GET"


class Faults:
    """The faults that are still to happen; used by many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def take_status(self, method: str, path: str) -> Fault | None:
        """The status for this request, if it is not to be answered."""
        return self._take(lambda fault: fault.kind == "status", method, path)

    def take_body(self, path: str, num_bytes: int) -> Fault | None:
        """The fault of a response with so many bytes of a file; a shorter one than `after` has none."""
        return self._take(lambda fault: fault.kind in BODY_FAULTS and num_bytes > fault.after, "GET", path)

    def _take(self, is_wanted: Callable[[Fault], bool], method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                is_meant = fnmatch(method, fault.method) and fnmatch(path, fault.path)
                if is_meant and fault.times != 0 and is_wanted(fault):
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None
