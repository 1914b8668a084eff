"""Warm starts have the commands, outputs and ends of cold ones, also in containers and after upgrades."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil
import pytest

from tests.e2e.server_process import ServerProcess
from tests.support.cli import CLI, run_cli
from tests.support.containers import own_processes
from tests.support.http_client import ask
from tests.support.marks import slow_but_for
from tests.support.ports import free_port
from tests.support.program import Program
from tests.support.standby_process import OFF, StandbyProcess
from tests.support.waiting import GONE_S, assert_gone, is_gone, wait_until

_VARYING: Final = (
    (re.compile(r"\d\d-\d\d \d\d:\d\d:\d\d"), "TIME"),
    (re.compile(r"\d+(\.\d+)? m?s\b"), "N s"),
    (re.compile(r"process \[?\d+\]?"), "process N"),
    (re.compile(r"in phase \w+"), "in phase P"),
    (re.compile(r"\((cold|warm)\): http"), "(MODE): http"),
)
_ONLY_WARM: Final = "warm start: forked from the standby's process"
_BY_SPEED: Final = ("prefetch ", "uvicorn.access", ": starting for ")
"""Lines about resident bytes, times of phases, and access logs of probes vary from start to start."""


class _Done(NamedTuple):
    code: int
    stdout: str
    stderr: str


def _run(arguments: tuple[str, ...], environment: Mapping[str, str]) -> _Done:
    done = run_cli("serve", *arguments, environment=environment)
    return _Done(done.returncode, _without_varying(done.stdout), _without_varying(done.stderr))


def _without_varying(text: str) -> str:
    """The output without times, process ids and indented lines (the table of phases, stacks of threads)."""
    lines = [line for line in text.splitlines() if not any(argument in line for argument in (_ONLY_WARM, *_BY_SPEED))]
    text = "\n".join(line for line in lines if line and not line.startswith("  "))
    for pattern, replacement in _VARYING:
        text = pattern.sub(replacement, text)
    return text


def _serve(model: Path, standby: StandbyProcess, *arguments: str, **options: Any) -> ServerProcess:
    return ServerProcess([str(model), *arguments], environment=standby.environment, **options)


def test_a_warm_server_is_forked_from_the_template_answers_and_reports_the_fork(tiny_llama, standby, tmp_path):
    num_starts = standby.num_starts()
    report = tmp_path / "report.json"
    with _serve(tiny_llama, standby, "--startup-report", str(report)) as server:
        assert server.complete(max_tokens=3) == 200
        assert standby.num_starts() == num_starts + 1
        forked = server.serving_process()
        assert [forked] == standby.servers()
        assert forked.cmdline() == psutil.Process(server.process.pid).cmdline()
        assert _ONLY_WARM in server.log
        answered = ask(f"{server.url}/startupz").json
    assert is_gone(forked.pid)
    standby.wait_no_server()
    for phases in (answered["phases"], json.loads(report.read_text())["phases"]):
        assert [phase["name"] for phase in phases][:2] == ["interpreter", "fork_from_standby"]


def test_cold_starts_are_not_compared_with_warm_ones(tiny_llama, standby, tmp_path):
    """The remaining time of a start comes from the history of starts of the same mode."""
    cache = {"VLLM_CACHE_ROOT": str(tmp_path)}
    for environment in (standby.environment, OFF):
        with ServerProcess([str(tiny_llama)], environment={**environment, **cache}):
            pass
    assert len(list((tmp_path / "vllm_cli" / "history").iterdir())) == 2


@pytest.mark.parametrize(
    "arguments",
    slow_but_for(
        [
            "--preflight-only --json",
            "--max-model-len 1000000",
            "--startup-timeout 0.001",
            "--nonsense",
            "--engine vllm",
            "--port TAKEN",
        ],
        "--preflight-only --json",
        "--startup-timeout 0.001",
        "--port TAKEN",
    ),
)
def test_a_start_that_ends_by_itself_ends_as_a_cold_one(arguments, tiny_llama, standby):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        given = arguments.replace("TAKEN", str(taken.getsockname()[1])).split()
        port = () if "--port" in arguments else ("--port", str(free_port()))
        everything = (str(tiny_llama), *port, *given)
        environment = {**standby.environment, "VCLI_STANDBY": "auto" if "vllm" in arguments else "require"}
        warm = _run(everything, environment)
        assert warm == _run(everything, OFF)
    assert (warm.code == 0) == ("--preflight-only" in arguments)
    standby.wait_no_server()


@pytest.mark.parametrize(
    "number", slow_but_for(["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGKILL"], "SIGTERM")
)
def test_a_signal_ends_a_ready_server_as_a_cold_one(number, tiny_llama, standby):
    ends = []
    for environment in (standby.environment, OFF):
        with ServerProcess([str(tiny_llama)], environment=environment) as server:
            wait_until(lambda log=server: "ready after" in log.log)  # probes are answered a moment before
            code = server.terminate(signal.Signals[number])
            ends.append((code, _without_varying(server.log).replace(str(server.port), "PORT").splitlines()))
            wait_until(lambda url=server.url: ask(f"{url}/health").status == 0)
    standby.wait_no_server()
    assert ends[0] == ends[1]


def test_a_signal_just_after_the_fork_ends_the_start_and_leaves_nothing(tiny_llama, standby):
    """The front process or the forked server receives the signal. `test_start.py` tests later phases."""
    number = random.choice((signal.SIGINT, signal.SIGTERM))
    with _serve(tiny_llama, standby, wait=False) as server:
        wait_until(standby.servers)
        assert server.terminate(number) in (0, 128 + number, -number, 3)
    standby.wait_no_server()


def test_concurrent_starts_all_answer(tiny_llama, standby):
    num_starts = standby.num_starts()
    with ExitStack() as stack:
        servers = [stack.enter_context(_serve(tiny_llama, standby, wait=False)) for _ in range(4)]
        for server in servers:
            server.wait_ready()
            assert server.complete(max_tokens=2) == 200
        assert standby.num_starts() == num_starts + 4
        for server in servers:
            server.process.terminate()
    standby.wait_no_server()


def _start(standby: StandbyProcess, model: Path, environment: dict[str, str], mode: str = "require") -> tuple[int, str]:
    environment = {**standby.environment, **environment, "VCLI_STANDBY": mode}
    arguments = ("serve", model, "--preflight-only", "--port", free_port())
    done = run_cli(*arguments, environment=environment, cwd=standby.runtime_folder)
    return done.returncode, done.stderr


def _install(folder: Path, version: str) -> None:
    """Installs a distribution of one module, which records which process has imported which version."""
    for old in folder.glob("tiny_thing-*.dist-info"):
        shutil.rmtree(old)
    module = f"import os\nopen({str(folder)!r} + '/imported', 'a').write(f'{{os.getpid()}} {version}\\n')\n"
    (folder / "tiny_thing.py.new").write_text(module)
    (folder / "tiny_thing.py.new").rename(folder / "tiny_thing.py")
    info = folder / f"tiny_thing-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tiny-thing\nVersion: {version}\n")


def test_an_upgraded_package_is_imported_again(tiny_llama, tmp_path):
    _install(tmp_path, "1.0")
    (tmp_path / "sitecustomize.py").write_text("import tiny_thing\n")
    environment = {"PYTHONPATH": str(tmp_path)}
    with StandbyProcess(environment=environment) as standby:
        template = standby.template()
        assert _start(standby, tiny_llama, environment)[0] == 0
        _install(tmp_path, "2.0")
        code, error = _start(standby, tiny_llama, environment)
        assert code == 3
        assert "out of date" in error
        assert "tiny_thing" in error
        wait_until(lambda: standby.status()["templates"][0]["pid"] not in (None, template.pid))
        standby.wait_ready()
        new_pid = standby.template().pid
        assert _start(standby, tiny_llama, environment)[0] == 0
        assert f"{new_pid} 2.0" in (tmp_path / "imported").read_text().splitlines()
        _install(tmp_path, "3.0")

        def is_found_out_of_date() -> bool:
            """A start asks nothing of a template that, on a busy machine, does not answer in 40 ms."""
            assert _start(standby, tiny_llama, environment, "auto") == (0, ""), "a cold start"
            return standby.status()["templates"][0]["pid"] not in (None, new_pid)

        wait_until(is_found_out_of_date)


@pytest.mark.parametrize(
    "is_detached", [pytest.param(False, marks=pytest.mark.slow), True], ids=["foreground", "detached"]
)
def test_a_standby_started_in_a_source_tree_runs_the_installed_program(is_detached, tiny_llama, tmp_path):
    """The standby's template processes start with `python -m`, which prefers the source tree."""
    (tmp_path / "vllm_cli").mkdir()
    (tmp_path / "vllm_cli" / "__init__.py").write_text("raise RuntimeError('the tree was imported')")
    (tmp_path / "model").symlink_to(tiny_llama)
    script = Path(sys.executable).with_name("vllm-cli")
    if not script.exists():
        pytest.skip("the console script is not installed")
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "VCLI_STANDBY": "require"}
    arguments = [str(script), "standby", "--for", "embedded", "--model", "model"]
    start = [str(script), "serve", str(tiny_llama), "--preflight-only", "--port", str(free_port())]

    def is_warm() -> bool:
        return subprocess.run(start, env=environment, capture_output=True, timeout=120, cwd="/").returncode == 0

    with subprocess.Popen(
        [*arguments, *(["--detach"] if is_detached else [])], env=environment, cwd=tmp_path
    ) as process:
        try:
            wait_until(is_warm)
        finally:
            subprocess.run([str(script), "standby", "stop"], env=environment, capture_output=True, timeout=60)
            assert process.wait(60) == 0


class _Container:
    """Namespaces with a standby as process 1."""

    def __init__(self, program: Program, variables: dict[str, str]) -> None:
        self.program = program
        self.variables = variables
        self._init = program.root.children()[0]

    @property
    def exec(self) -> tuple[str, ...]:
        """A launcher that runs a command in the container, as `docker exec` does."""
        return ("nsenter", "--target", str(self._init.pid), "--user", "--mount", "--pid", "--preserve-credentials")

    def cli(self, *arguments: str) -> str:
        """The output of `docker exec CONTAINER vllm-cli ...`."""
        return run_cli(*arguments, launcher=self.exec, environment=self.variables).stdout

    def listed(self) -> dict[str, tuple[int | None, str]]:
        """Kind -> port and state in `vllm-cli ps` in the container."""
        return {entry["kind"]: (entry["port"], entry["state"]) for entry in json.loads(self.cli("ps", "--json"))}

    def is_ready(self) -> bool:
        return '"ready"' in self.cli("standby", "status", "--json")

    def stop(self) -> int:
        """Stops the container as `docker stop` does."""
        self._init.send_signal(signal.SIGTERM)
        return self.program.process.wait(GONE_S)


@pytest.fixture
def container() -> Iterator[_Container]:
    launcher = own_processes()
    if launcher is None or shutil.which("nsenter") is None:
        pytest.skip("process namespaces cannot be created")
    with tempfile.TemporaryDirectory(prefix="vs-", dir="/tmp") as path:
        variables = {"XDG_RUNTIME_DIR": path, "VCLI_STANDBY": "require"}
        with Program([*launcher, *CLI, "standby", "--for", "embedded"], os.environ | variables) as program:
            program.wait(lambda: list(Path(path).glob("vllm-cli/*-embedded.sock")))
            started = _Container(program, variables)
            program.wait(started.is_ready)
            yield started
            if program.process.poll() is None:
                started.stop()


def test_servers_that_are_started_in_the_container_are_warm_and_end_alone_and_with_it(container, tiny_llama):
    """One server is stopped. The second server's `serve` is killed. The last ends with the container."""
    with ServerProcess([str(tiny_llama)], launcher=container.exec, environment=container.variables) as server:
        assert "warm start: forked from the standby's process" in server.log
        expected = {"server": (server.port, "ready"), "standby": (None, "ready")}
        wait_until(lambda: container.listed() == expected)  # on a busy machine, probes may time out
        assert container.cli("stop").endswith("has stopped\n")
        assert server.process.wait(GONE_S) == 0
    assert container.is_ready()

    with ServerProcess([str(tiny_llama)], launcher=container.exec, environment=container.variables) as server:
        forked = container.program.root.children(recursive=True)
        (front,) = psutil.Process(server.process.pid).children()
        front.kill()
        server.process.wait(GONE_S)
        wait_until(lambda: len(container.program.root.children(recursive=True)) == 3)
        assert len(forked) > 3
    assert container.is_ready()

    with ServerProcess([str(tiny_llama)], launcher=container.exec, environment=container.variables) as server:
        family = container.program.root.children(recursive=True)
        assert container.stop() == 0
        assert_gone(family)
        server.process.wait(GONE_S)
