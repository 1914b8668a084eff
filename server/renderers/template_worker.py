"""Renders chat templates that came with requests, in a separate process that may be killed at any moment.

Jinja's sandbox keeps a template from reaching Python's internals. It limits neither computing time nor
memory, and a thread that computes in C cannot be interrupted. In a process, the kernel enforces both limits.
"""

import json
import math
import resource
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

from transformers.utils.chat_template_utils import render_jinja_template

from server.renderers.conversations.chat_template import describe_template_error
from server.renderers.conversations.content_format import detect_content_format

CPU_S: Final = 1
"""Processor time per template; the kernel counts whole seconds since the process began, rounded up."""
MEMORY_BYTES: Final = 512 << 20
"""Memory that a template may use in addition to the process's memory at its start."""
MAX_TEXT_CHARS: Final = 16 << 20
"""Longest text that a template may produce."""

LENGTH: Final = struct.Struct("!Q")
"""Header of every message, in both directions: its number of bytes."""
_MAX_OPEN_FILES: Final = 16


def main() -> NoReturn:
    """Answers requests from standard input until end of file."""
    _limit_resources()
    for request in _requests():
        with _limited_processor_time():
            answer = _answer(**request)
        data = json.dumps(answer).encode()
        sys.stdout.buffer.write(LENGTH.pack(len(data)) + data)
        sys.stdout.buffer.flush()
    sys.exit(0)


def _answer(operation: str, **arguments: Any) -> dict[str, str]:
    try:
        return {"value": _OPERATIONS[operation](**arguments)}
    except Exception as err:  # noqa: BLE001 - a template may raise any kind of error
        return {"error": describe_template_error(err)[:MAX_TEXT_CHARS]}


def _requests() -> Iterator[dict[str, Any]]:
    while header := sys.stdin.buffer.read(LENGTH.size):
        yield json.loads(sys.stdin.buffer.read(*LENGTH.unpack(header)))


def _render(conversation: list[dict[str, Any]], options: dict[str, Any]) -> str:
    [text], _ = render_jinja_template(conversations=[conversation], **options)
    if len(text) > MAX_TEXT_CHARS:
        raise ValueError(f"its text has {len(text)} characters, more than {MAX_TEXT_CHARS}")
    return str(text)


_OPERATIONS: Final[dict[str, Callable[..., str]]] = {"render": _render, "content_format": detect_content_format}


def _limit_resources() -> None:
    """Limits memory and open files; forbids writing data to files and, except for root, starting processes.

    Files can still be read and removed by code that escapes from the sandbox.
    """
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + MEMORY_BYTES)
    _limit(resource.RLIMIT_NOFILE, _MAX_OPEN_FILES)
    for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC, resource.RLIMIT_CORE):
        _limit(kind, 0)


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(kind, (most, most))


@contextmanager
def _limited_processor_time() -> Iterator[None]:
    """Gives each template its own processor time; reading the next request is outside the limit."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = math.ceil(used.ru_utime + used.ru_stime) + CPU_S
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))
