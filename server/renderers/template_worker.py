"""Renders chat templates that came with requests: a process of its own, which may be ended at any moment.

Jinja's sandbox keeps a template from reaching Python's insides. It does not keep it from computing for ever, or from
asking for all the memory there is, and what computes in C cannot be interrupted in a thread. Here the kernel does that.
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

from server.renderers.chat_template import describe_template_error
from server.renderers.content_format import detect_content_format

CPU_S: Final = 1
"""Processor time that a template may take, rounded up to whole seconds since the process began."""
MEMORY_BYTES: Final = 512 << 20
"""Memory that it may take beside what this process has when it begins."""
MAX_TEXT_CHARS: Final = 16 << 20
"""Longest text that it may make."""

LENGTH: Final = struct.Struct("!Q")
"""What goes before every message, in both directions: its number of bytes."""
_MAX_OPEN_FILES: Final = 16


def main() -> NoReturn:
    """Answers requests from standard input until it ends."""
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
    except Exception as err:  # noqa: BLE001 - a template is foreign code and may raise anything
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
    """Beside memory: no file can be written, no process started, and no more than a few files opened."""
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
    """What one template has used up is not taken from the next one's request, which is read after the block."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = math.ceil(used.ru_utime + used.ru_stime) + CPU_S
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))
