"""Memory runs out. The kernel kills a process, or an allocation fails. The reason is reported."""

import errno
import os
import resource
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

import psutil
import pytest

from base.machine.cgroups import own_cgroups
from base.wording import format_bytes
from tests.e2e.server_process import ServerProcess, wait_process
from tests.support.http_client import Answer, ask
from tests.support.waiting import wait_until

_ENTER: Final = ("sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"')
_LIMITS: Final = {1: "memory.limit_in_bytes", 2: "memory.max"}
_USAGES: Final = {1: "memory.usage_in_bytes", 2: "memory.current"}
_NONE: Final = {1: "-1", 2: "max"}
_GONE_S = 120.0
_ANSWER_S = 200.0
_NUM_CLIENTS = 24
_REST_S = 1.0
_MARGIN_BYTES = 24 << 20
_PROMPT = " once" * 900


class MemoryGroup:
    """A cgroup v1 or v2, at first without a limit. Its processes exit before the end of the `with` block."""

    def __init__(self, name: str) -> None:
        groups = list(own_cgroups("memory"))
        if not groups:
            pytest.skip("there are no memory cgroups")
        around = min(reversed(groups), key=lambda group: group.version)  # version 2 may lack this controller
        self._version = around.version
        self._folder = around.folder / f"{name}-{os.getpid()}"

    def __enter__(self) -> Self:
        try:
            self._folder.mkdir()
            self.set_limit(None)
        except OSError as err:
            with suppress(OSError):
                self._folder.rmdir()
            pytest.skip(f"no memory limit can be set: {err}")
        return self

    def __exit__(self, *_: object) -> None:
        wait_until(self._remove)

    def _remove(self) -> bool:
        """Removes the group. Returns False while the kernel still counts an exited process."""
        try:
            self._folder.rmdir()
        except OSError as err:
            if err.errno == errno.EBUSY:
                return False
            raise
        return True

    @property
    def launcher(self) -> tuple[str, ...]:
        """A launcher that executes a program under the limit."""
        return (*_ENTER, str(self._folder))

    @property
    def num_used_bytes(self) -> int:
        """The memory of the group's processes, including the page cache."""
        return int((self._folder / _USAGES[self._version]).read_text())

    def set_limit(self, num_bytes: int | None) -> None:
        """Sets the limit. None removes the limit."""
        (self._folder / _LIMITS[self._version]).write_text(str(num_bytes) if num_bytes else _NONE[self._version])


def _ask_all(url: str) -> list[Future[Answer]]:
    """Concurrent requests that together need some hundred megabytes of KV cache."""

    def send(number: int) -> Answer:
        body = {"prompt": f"{number}{_PROMPT}", "max_tokens": 100, "ignore_eos": True}
        return ask(f"{url}/v1/completions", body, timeout_s=_ANSWER_S)

    pool = ThreadPoolExecutor(_NUM_CLIENTS)
    answers = [pool.submit(send, number) for number in range(_NUM_CLIENTS)]
    pool.shutdown(wait=False)
    return answers


@pytest.mark.slow
def test_server_whose_engine_the_kernel_kills_exits_with_the_reason(model_path):
    with (
        MemoryGroup("vllm-cli-chaos-end") as group,
        ServerProcess([str(model_path)], launcher=group.launcher) as server,
    ):
        server.family()
        limit_bytes = (group.num_used_bytes + _MARGIN_BYTES) & -4096
        group.set_limit(limit_bytes)
        answers = _ask_all(server.url)
        assert server.process.wait(_GONE_S) == 1
        assert 500 in [answer.result().status for answer in answers]
        limit = format_bytes(limit_bytes)
        (line,) = [line for line in server.log.splitlines() if "the engine died" in line]
        assert f"the kernel killed it because the memory of this container ({limit}) ran out" in line
        assert "Lower --max-num-seqs, --max-model-len or --kv-cache-memory-bytes, or provide more memory" in line


def test_engine_whose_allocation_fails_reports_the_reason(start_server):
    with start_server("--engine-watchdog-timeout", "60") as server:
        server.may_log_tracebacks = True
        engine = wait_process(server, "engine")
        _wait_idle(engine)
        used = next(line for line in Path(f"/proc/{engine.pid}/status").read_text().splitlines() if "VmData" in line)
        most = (int(used.split()[1]) << 10) + (1 << 20)
        resource.prlimit(engine.pid, resource.RLIMIT_DATA, (most, most))
        answers = [answer.result() for answer in _ask_all(server.url)]
        assert {answer.status for answer in answers} <= {200, 500, 503}  # freed memory is enough for some of them
        assert any(b"the engine ran out of memory (" in answer.body for answer in answers), server.log
        assert server.process.wait(_GONE_S) == 1
        (line,) = [line for line in server.log.splitlines() if "the engine died" in line]
        assert "the engine ran out of memory (" in line
        assert "lower --max-num-seqs or --max-model-len, or give it more memory" in line


def _wait_idle(engine: psutil.Process) -> None:
    """Waits until the engine has done its imports at idle. They fail in many ways if memory is short."""

    def has_rested() -> bool:
        before = engine.cpu_times().user
        time.sleep(_REST_S)
        return engine.cpu_times().user == before and engine.status() == psutil.STATUS_SLEEPING

    wait_until(has_rested)
