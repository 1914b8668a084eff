"""A disk or /dev/shm is full, or memory runs out: the server serves or reports why, and loses no result."""

import errno
import json
import os
import resource
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

import psutil
import pytest

from base.machine.cgroups import own_cgroups
from base.wording import format_bytes
from tests.e2e.chaos.small_disk import SmallDisk
from tests.e2e.server_process import ServerProcess, wait_process
from tests.support.cli import run_cli
from tests.support.http_client import Answer, ask
from tests.support.hub import HubServer
from tests.support.waiting import wait_until

_ENDS_S = 200.0
_APPEND_LOG = ("sh", "-c", 'exec "$@" >>"$0" 2>&1')
"""A launcher that takes the name of a log file, then the command."""
_FULL_SCREEN = ("sh", "-c", 'exec "$@" >/dev/full 2>/dev/full', "sh")
_SHM = Path("/dev/shm")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder


@pytest.fixture
def disk(folder: Path, request: pytest.FixtureRequest) -> Iterator[SmallDisk]:
    with SmallDisk(folder, getattr(request, "param", 256 << 10)) as disk:
        yield disk


@pytest.mark.parametrize("disk", [64 << 20], ids=["room for bytecode"], indirect=True)
@pytest.mark.parametrize(
    "bytecode", [{}, pytest.param({"PYTHONPYCACHEPREFIX": "bytecode"}, marks=pytest.mark.slow)], ids=["", "bytecode"]
)
def test_server_starts_serves_and_stops_with_all_its_files_on_a_full_disk(tiny_llama, folder, disk, bytecode):
    log = disk.path_inside(folder / "log")
    disk.fill()
    arguments = [str(tiny_llama), "--startup-report", f"{folder}/report.json"]
    launcher = (*disk.launcher, *_APPEND_LOG, str(folder / "log"))
    settings = {"VLLM_CACHE_ROOT": f"{folder}/cache", "PYTHONDONTWRITEBYTECODE": ""}
    settings |= {name: f"{folder}/{place}" for name, place in bytecode.items()}
    with ServerProcess(arguments, launcher=launcher, environment=settings) as server:
        assert server.complete(max_tokens=4) == 200
        assert log.read_text() == ""
        disk.make_room()
        assert server.complete(max_tokens=4) == 200
        assert server.terminate() == 0
    lines = log.read_text().splitlines()
    lost = "lines of this log were lost: standard error could not be written (No space left on device)"
    assert lost in next(line for line in lines if "(api)" in line)  # the engine's lines may come first
    assert any('"POST /v1/completions HTTP/1.1" 200' in line for line in lines[1:])
    assert "Traceback" not in "".join(lines)
    assert not disk.path_inside(folder / "report.json").exists()


def test_files_of_a_start_that_cannot_be_written_are_reported_and_no_part_is_left(
    start_server, folder, disk, tiny_llama
):
    old = disk.path_inside(folder / "report.json")
    old.write_text("of an earlier start")
    disk.fill()
    arguments = [str(tiny_llama), "--startup-report", f"{folder}/report.json"]
    with ServerProcess(arguments, launcher=disk.launcher, environment={"VLLM_CACHE_ROOT": f"{folder}/cache"}) as server:
        server.wait_logged("ready after")
        no_room = "No space left on device"
        server.wait_logged(f"the start-up report could not be written to {folder}/report.json: {no_room}")
        assert server.terminate() == 0
    assert old.read_text() == "of an earlier start"
    assert {path.name for path in disk.path_inside(folder).iterdir()} <= {"report.json", "ballast", "cache"}
    files = [path for path in disk.path_inside(folder / "cache").rglob("*") if path.is_file()]
    assert not any(path.name.startswith(".") for path in files)


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["serve", "/no/such/model", "--port", "0"], 3),
        (["serve", "--port", "many"], 2),
        (["wait", "--timeout", "x"], 2),
    ],
)
def test_exit_codes_do_not_depend_on_room_for_the_message(arguments, exit_code):
    assert run_cli(*arguments, launcher=_FULL_SCREEN).returncode == exit_code


def test_output_that_cannot_be_written_is_an_error():
    with Path("/dev/full").open("wb") as full:
        done = run_cli("doctor", "--env", stdout=full)
    assert done.returncode == 1
    assert done.stderr == (
        "Error: the output cannot be written: No space left on device. Free space, or write it elsewhere.\n"
    )


def test_download_without_room_names_its_size_and_folder(model_path, folder, disk):
    files = {"model.safetensors": os.urandom(4 << 20)}
    files |= {
        name: (model_path / name).read_bytes() for name in ("config.json", "tokenizer.json", "tokenizer_config.json")
    }
    with HubServer().serving() as hub:
        size = format_bytes(hub.add("org/model", files).size)
        settings = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
        arguments = ["org/model", "--download-dir", f"{folder}/hub"]
        with ServerProcess(arguments, launcher=disk.launcher, environment=settings, wait=False) as server:
            assert server.process.wait(_ENDS_S) == 3
            (line,) = [line for line in server.log.splitlines() if line.startswith("Error:")]
        prefetch = run_cli("prefetch", *arguments, "--json", launcher=disk.launcher, environment=settings)
    assert (prefetch.returncode, json.loads(prefetch.stdout)["state"]) == (6, "no_space")
    assert f"org/model could not be downloaded: {size} are missing and " in line
    assert f" are free in {folder}/hub: " in line
    assert "free space, or give another --download-dir" in line


@pytest.mark.parametrize(
    "method",
    ["forkserver", pytest.param("spawn", marks=pytest.mark.slow), pytest.param("fork", marks=pytest.mark.slow)],
)
def test_server_starts_and_serves_without_shared_memory(tiny_llama, method):
    with SmallDisk(_SHM, 4096, num_files=1) as disk:
        disk.fill()
        environment = {"VLLM_WORKER_MULTIPROC_METHOD": method}
        with ServerProcess([str(tiny_llama)], launcher=disk.launcher, environment=environment) as server:
            assert server.complete(max_tokens=4) == 200
            assert "/dev/shm has 0 bytes free" in server.log
            assert server.terminate() == 0
        assert [path.name for path in disk.path_inside(_SHM).iterdir()] == ["ballast"]


_ENTER: Final = ("sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"')
_LIMITS: Final = {1: "memory.limit_in_bytes", 2: "memory.max"}
_USAGES: Final = {1: "memory.usage_in_bytes", 2: "memory.current"}
_NONE: Final = {1: "-1", 2: "max"}
_GONE_S = 120.0
_ANSWER_S = 200.0
_NUM_CLIENTS = 24
_REST_S = 1.0
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
        limit_bytes = (group.num_used_bytes + (24 << 20)) & -4096
        group.set_limit(limit_bytes)
        answers = _ask_all(server.url)
        assert server.process.wait(_GONE_S) == 1
        assert 500 in [answer.result().status for answer in answers]
        limit = format_bytes(limit_bytes)
        line, cause = [line for line in server.log.splitlines() if "the engine died" in line]
        assert cause.startswith("Cause: the kernel killed a process because memory ran out")
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
