"""Starts that fork their server from a standby: the same commands, outputs and ends as cold ones."""

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil
import pytest

from tests.certificates import make_certificate, needs_openssl
from tests.cli import CLI, run_cli
from tests.e2e.server_process import ServerProcess
from tests.http_answer import ask
from tests.ports import free_port
from tests.standby_process import OFF, StandbyProcess
from tests.tiers import slow_but_for
from tests.waiting import is_gone, wait_listening, wait_until

_VARYING: Final = (
    (re.compile(r"\d\d-\d\d \d\d:\d\d:\d\d"), "TIME"),
    (re.compile(r"\d+(\.\d+)? m?s\b"), "N s"),
    (re.compile(r"process \[?\d+\]?"), "process N"),
    (re.compile(r"in phase \w+"), "in phase P"),
)
_ONLY_WARM: Final = "warm start: forked from the standby's process"
_BY_SPEED: Final = ("prefetch ", "uvicorn.access", "slower than your median", ": starting for ")
"""How much was resident and how long a phase takes varies, and which process answers a probe."""


class _Done(NamedTuple):
    code: int
    stdout: str
    stderr: str


def _run(words: tuple[str, ...], environment: Mapping[str, str]) -> _Done:
    done = run_cli("serve", *words, environment=environment)
    return _Done(done.returncode, _without_varying(done.stdout), _without_varying(done.stderr))


def _without_varying(text: str) -> str:
    """The output without times and process ids, and without the table of phases, which is indented."""
    lines = [line for line in text.splitlines() if not any(word in line for word in (_ONLY_WARM, *_BY_SPEED))]
    text = "\n".join(line for line in lines if not line.startswith("  "))
    for pattern, replacement in _VARYING:
        text = pattern.sub(replacement, text)
    return text


def _serve(model: Path, standby: StandbyProcess, *words: str, **options: Any) -> ServerProcess:
    return ServerProcess([str(model), *words], environment=standby.environment, **options)


def _forked(standby: StandbyProcess) -> psutil.Process:
    (server,) = standby.servers()
    return server


def _chat(server: ServerProcess, content: Any = "Hi") -> str:
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 8}
    answer = ask(f"{server.url}/v1/chat/completions", body)
    assert answer.status == 200, answer
    return str(answer.json["choices"][0]["message"]["content"])


@pytest.mark.smoke
def test_a_warm_server_is_forked_from_the_template_and_answers(tiny_llama, standby):
    num_starts = standby.num_starts()
    with _serve(tiny_llama, standby) as server:
        assert server.complete(max_tokens=3) == 200
        assert standby.num_starts() == num_starts + 1
        forked = _forked(standby)
        assert forked.cmdline() == psutil.Process(server.process.pid).cmdline()
        assert _ONLY_WARM in server.log
    assert is_gone(forked.pid)
    standby.wait_no_server()


def test_cold_starts_are_not_compared_with_warm_ones(tiny_llama, standby, tmp_path):
    """The history of starts gives the remaining time, and reports a start that was much slower."""
    cache = {"VLLM_CACHE_ROOT": str(tmp_path)}
    for environment in (standby.environment, standby.environment, standby.environment, OFF):
        with ServerProcess([str(tiny_llama)], environment={**environment, **cache}):
            pass
    keys = [json.loads(line)["key"] for line in (tmp_path / "vllm_cli" / "history.jsonl").read_text().splitlines()]
    assert keys[0] == keys[1] == keys[2] != keys[3]


def test_report_trace_timeline_and_startupz_show_the_fork(tiny_llama, standby, tmp_path):
    report, trace = tmp_path / "report.json", tmp_path / "trace.json"
    with _serve(tiny_llama, standby, "--startup-report", str(report), "--startup-trace", str(trace)) as server:
        answered = ask(f"{server.url}/startupz").json
    written = json.loads(report.read_text())
    for phases in (answered["phases"], written["phases"]):
        assert [phase["name"] for phase in phases][:2] == ["interpreter", "fork_from_standby"]
    events = json.loads(trace.read_text())["traceEvents"]
    assert "fork_from_standby" in {event["name"] for event in events}
    assert re.search(r"api +fork_from_standby", run_cli("timeline", report).stdout)


@pytest.mark.parametrize(
    "words",
    [
        ("--port", "99999"),
        ("--preflight-only",),
        ("--preflight-only", "--json"),
        ("--max-model-len", "1000000"),
        ("--startup-timeout", "0.001"),
        ("--nonsense",),
        ("--config", "missing.yaml"),
        ("--uds", "/no/such/folder/socket"),
        ("--ssl-certfile", "/no/such/file"),
        ("--host", "192.0.2.1"),
        ("--engine", "vllm"),
    ],
    ids=" ".join,
)
def test_a_start_that_ends_by_itself_ends_as_a_cold_one(words, tiny_llama, standby):
    port = () if "--port" in words else ("--port", str(free_port()))
    everything = (str(tiny_llama), *port, *words)
    environment = {**standby.environment, "VCLI_STANDBY": "auto" if "vllm" in words else "require"}
    assert _run(everything, environment) == _run(everything, OFF)
    standby.wait_no_server()


def test_a_taken_port_ends_with_3_and_names_its_owner(tiny_llama, standby):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = (str(tiny_llama), "--host", "127.0.0.1", "--port", str(taken.getsockname()[1]))
        warm, cold = _run(words, standby.environment), _run(words, OFF)
    assert warm == cold
    assert warm.code == 3


@pytest.mark.parametrize(
    "number", slow_but_for(["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGKILL"], "SIGTERM", "SIGKILL")
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: signal.Signals(number).name)
@pytest.mark.parametrize(
    ("after", "delay_s"),
    [
        *(("the fork", delay_s) for delay_s in (0.0, 0.005, 0.01, 0.015, 0.02, 0.03)),
        *(("listening", delay_s) for delay_s in (0.0, 0.02, 0.05, 0.1, 0.2)),
    ],
)
def test_a_signal_in_any_phase_ends_the_start_and_leaves_nothing(number, after, delay_s, tiny_llama, standby):
    """The front process or the forked one receives it."""
    with _serve(tiny_llama, standby, wait=False) as server:
        if after == "listening":
            wait_listening(server.port)
        else:
            wait_until(standby.servers)
        time.sleep(delay_s)
        assert server.terminate(number) in (0, 128 + number, -number, 3)
        assert "Traceback" not in server.log or ("runpy" not in server.log and after == "listening"), server.log
    standby.wait_no_server()


def test_wait_by_process_id_ends_with_a_failed_start(tiny_llama, standby):
    with _serve(tiny_llama, standby, "--max-model-len", "1000000", wait=False) as server:
        assert run_cli("wait", "--port", server.port, "--pid", server.process.pid).returncode == 1
        assert server.process.wait(60) == 3


@needs_openssl
def test_tls(tiny_llama, standby, tmp_path):
    certificate = make_certificate(tmp_path, "server")
    with _serve(tiny_llama, standby, *certificate.flags, wait=False) as server:
        context = certificate.client_context()

        def is_ready() -> bool:
            try:
                with urllib.request.urlopen(f"https://127.0.0.1:{server.port}/health", context=context) as answer:
                    return bool(answer.status == 200)
            except OSError:
                assert server.process.poll() is None, server.log
                return False

        wait_until(is_ready)


def test_a_unix_socket_relative_to_the_working_folder(tiny_llama, standby):
    folder = standby.runtime_folder
    words = [*CLI, "serve", str(tiny_llama), "--uds", "relative.sock"]
    with subprocess.Popen(words, env={**os.environ, **standby.environment}, cwd=folder) as server:
        try:
            assert run_cli("wait", "--uds", "relative.sock", cwd=folder).returncode == 0
            assert len(standby.servers()) == 1
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)


def test_a_dead_engine_is_restarted_behind_the_port(tiny_llama, standby):
    with _serve(tiny_llama, standby, "--engine-restarts", "1") as server:
        engine = standby.wait_engine()
        engine.kill()
        wait_until(lambda: is_gone(engine.pid))
        wait_until(lambda: server.complete(max_tokens=2) == 200)
        second = standby.wait_engine()
        second.kill()
        assert server.process.wait(60) == 1
    standby.wait_no_server()


@pytest.mark.parametrize("kind", slow_but_for(["text", "images", "pooling"], "images"))
def test_each_kind_of_model_answers_as_in_a_cold_start(kind, model_path, tmp_path, standby):
    from tests.server.engine.features.tiny_vlm import save_vlm
    from tests.server.engine.features.vlm_reference import image_messages, image_url
    from tests.server.engine.pooling.tiny_poolers import save_pooler, save_sentence_files

    match kind:
        case "text":
            words, content = [str(model_path)], "What is the capital of France?"
        case "images":
            words, content = (
                [str(save_vlm(tmp_path, "smolvlm")), "--dtype", "float32"],
                image_messages(image_url(1))[0]["content"],
            )
        case _:
            save_pooler(tmp_path, "bert")
            save_sentence_files(tmp_path)
            words, content = [str(tmp_path), "--runner", "pooling"], ""
    answers = []
    for environment in (standby.environment, OFF):
        with ServerProcess(words, environment=environment) as server:
            if kind == "pooling":
                answers.append(ask(f"{server.url}/v1/embeddings", {"input": "hello world"}).json["data"])
            else:
                answers.append(_chat(server, content))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_each_start_method_works(method, tiny_llama, standby):
    environment = {**standby.environment, "VLLM_WORKER_MULTIPROC_METHOD": method}
    with ServerProcess([str(tiny_llama)], environment=environment) as server:
        assert server.complete(max_tokens=2) == 200
        assert _ONLY_WARM in server.log
    standby.wait_no_server()


def test_twenty_concurrent_starts_all_answer(tiny_llama, standby):
    num_starts = standby.num_starts()
    servers = [_serve(tiny_llama, standby, wait=False) for _ in range(20)]
    try:
        for server in servers:
            server.__enter__()
        for server in servers:
            server.wait_ready()
            assert server.complete(max_tokens=2) == 200
        assert standby.num_starts() == num_starts + 20
    finally:
        for server in servers:
            server.process.terminate()
        for server in servers:
            server.__exit__(None, None, None)
    standby.wait_no_server()


@pytest.mark.timeout(1200)
@pytest.mark.slow
def test_two_hundred_starts_leave_nothing_behind(tiny_llama, standby):
    template = standby.template()
    words = (str(tiny_llama), "--preflight-only", "--port", str(free_port()))

    def start(number: int) -> None:
        if number % 10:
            assert _run(words, standby.environment).code == 0
        else:
            with _serve(tiny_llama, standby) as server:
                assert server.complete(max_tokens=1) == 200

    start(0)
    standby.wait_no_server()
    before = _residue(standby)
    for number in range(200):
        start(number)
    standby.wait_no_server()
    wait_until(lambda: not template.children())
    wait_until(lambda: not _residue(standby).open_files - before.open_files)  # a question may still be open
    after = _residue(standby)
    assert after.files == before.files
    assert after.memory_bytes < before.memory_bytes + (4 << 20)
    assert standby.template().pid == template.pid


class _Residue(NamedTuple):
    open_files: Counter[str]
    files: list[str]
    memory_bytes: int


def _open_files(process: psutil.Process) -> Iterator[str]:
    """Names of open files, without the numbers of sockets and pipes."""
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(OSError):
            yield re.sub(r"\[\d+\]", "", str(link.readlink()))


def _residue(standby: StandbyProcess) -> _Residue:
    """What grows if something is left behind: open files, files, private memory."""
    processes = [standby.template(), psutil.Process(standby.process.pid)]
    return _Residue(
        open_files=Counter(name for process in processes for name in _open_files(process)),
        files=sorted(str(path) for path in standby.runtime_folder.rglob("*")),
        memory_bytes=sum(process.memory_full_info().uss for process in processes),
    )
