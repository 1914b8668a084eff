"""Runs the helper process (`template_worker`) that renders chat templates from requests under limits."""

import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from time import monotonic
from typing import Any, Final

import jinja2

from envs.restricted import restricted_environment
from server.renderers.conversations.messages import Message

_ROOT: Final = Path(__file__).parents[2]
_CODE: Final = (
    "import sys; sys.path.append(sys.argv[1]); import vllm_cli.own_packages; "
    "from server.renderers.template_worker import main; main()"
)
_LENGTH: Final = struct.Struct("!Q")
_WALL_S: Final = 60.0
"""Timeout for a machine without free processor time; the process limits its own processor time."""
_CHUNK_BYTES: Final = 1 << 20


class TemplateProcess:
    """One process, started for the first template and restarted after a template that killed it.

    Several threads may call; they wait for each other. A template that fails or exceeds a limit raises
    jinja2.TemplateError.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, conversation: list[Message], options: dict[str, Any]) -> str:
        """Renders the template in `options`, which are those of transformers' `render_jinja_template`."""
        return self._ask({"operation": "render", "conversation": conversation, "options": options})

    def content_format(self, template: str) -> str:
        """Runs `detect_content_format` on the template."""
        return self._ask({"operation": "content_format", "template": template})

    def close(self) -> None:
        """Kills the process."""
        with self._lock:
            self._end()

    def _ask(self, request: dict[str, Any]) -> str:
        data = json.dumps(request).encode()
        with self._lock:
            if self._process is None:
                self._process = _start()
            try:
                answer = _exchange(self._process, _LENGTH.pack(len(data)) + data)
            except TimeoutError as err:
                self._end()
                raise jinja2.TemplateError("it takes too long") from err
            except (OSError, EOFError) as err:
                raise jinja2.TemplateError(_describe_end(self._process.wait())) from err
            finally:
                if self._process is not None and self._process.returncode is not None:
                    self._end()
        if "error" in answer:
            raise jinja2.TemplateError(answer["error"])
        return str(answer["value"])

    def _end(self) -> None:
        if self._process is not None:
            with self._process as process:
                process.kill()
            self._process = None


def _start() -> subprocess.Popen[bytes]:
    """Without the secrets of the environment, and with nothing of the working folder on its path."""
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _CODE, str(_ROOT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env=restricted_environment(),
        start_new_session=True,
    )


def _exchange(process: subprocess.Popen[bytes], message: bytes) -> dict[str, Any]:
    """Raises EOFError or OSError if the process has exited, TimeoutError if it does not answer."""
    deadline = monotonic() + _WALL_S
    _write(process, message, deadline)
    [num_bytes] = _LENGTH.unpack(_read(process, _LENGTH.size, deadline))
    answer: dict[str, Any] = json.loads(_read(process, num_bytes, deadline))
    return answer


def _write(process: subprocess.Popen[bytes], message: bytes, deadline: float) -> None:
    """Writes with a timeout: a stopped process does not read, so a blocking write could wait for ever."""
    assert process.stdin is not None
    fd = process.stdin.fileno()
    os.set_blocking(fd, False)
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    unsent = memoryview(message)
    while unsent:
        if not poll.poll(max(0.0, deadline - monotonic()) * 1000):
            raise TimeoutError
        unsent = unsent[os.write(fd, unsent) :]


def _read(process: subprocess.Popen[bytes], num_bytes: int, deadline: float) -> bytes:
    assert process.stdout is not None
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    parts: list[bytes] = []
    while num_bytes:
        if not poll.poll(max(0.0, deadline - monotonic()) * 1000):
            raise TimeoutError
        parts.append(os.read(process.stdout.fileno(), min(num_bytes, _CHUNK_BYTES)))
        if not parts[-1]:
            raise EOFError
        num_bytes -= len(parts[-1])
    return b"".join(parts)


def _describe_end(exit_code: int) -> str:
    if exit_code == -signal.SIGXCPU:
        return "it takes too much processor time"
    return f"it ended the process that renders it (exit code {exit_code})"
