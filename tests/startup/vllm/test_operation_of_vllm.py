"""The operation of vLLM: keys, JSON logs, `ps` and `stop`, a service manager, the watch and the idle stop."""

import json
import re
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from startup.vllm.patches.json_logs import set_log_format
from startup.vllm_arguments.installed import InstalledVllm
from startup.vllm_arguments.vllm_line import VllmLine
from tests.startup.port.notify_socket import NotifySocket
from tests.startup.vllm.fake_start import CHECKED, FakeStart, environment, rewrite, run_fake, variant, without_forks
from tests.support.certificates import make_certificate, needs_openssl
from tests.support.cli import run_cli
from tests.support.http_client import StreamReader, ask
from tests.support.waiting import is_gone, wait_until

pytestmark = pytest.mark.thorough


_SECRETS = ("sesame-one", "sesame-two", "sesame-three")
_WORDS = ("model", "--api-key", *_SECRETS[:2], "--hf-token=sesame-three", "--enforce-eager")


def _shown(start: FakeStart) -> str:
    """The command lines of the running processes."""
    shown = []
    for process in (start.root, *start.family()):
        with suppress(psutil.NoSuchProcess):
            shown.append("\0".join(process.cmdline()))
    assert len(shown) >= 3
    return "\n".join(shown)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_secrets_reach_vllm_and_are_masked_elsewhere(method, folder):
    fake = variant(folder, _version='__version__ = "0.32.0"\n')
    env = environment(folder, fake, VLLM_WORKER_MULTIPROC_METHOD=method)
    gate = folder / "gate"
    with FakeStart(folder, *_WORDS, "--gate", str(gate), env=env) as start:
        start.wait_logged("EngineCore prints a line")
        assert start.responders()
        assert "sesame" not in _shown(start)
        gate.touch()
        server = start.wait_ready().state()["server"]
        assert "sesame" not in _shown(start)
        assert "--api-key\0**********\0**********\0--hf-token=************\0" in _shown(start)
        drained = (_WORDS[0], "--shutdown-timeout", "25", *_WORDS[1:])
        assert server["argv"][2 : 2 + len(drained)] == list(drained)
        notices = start.lines_with("Notice:")
        assert [notice.partition(" on the command line")[0] for notice in notices] == [
            "Notice: --api-key",
            "Notice: --hf-token",
        ]
        assert [notice.rpartition(" ")[2] for notice in notices] == ["VLLM_API_KEY.", "HF_TOKEN."]
        assert "sesame" not in start.log


def test_a_second_attempt_has_the_unmasked_words_and_no_log_configuration_of_the_first(folder):
    """The program executes itself again, and does not take its first log configuration for the user's own."""
    env = environment(folder, without_forks(folder, "0.99.0+cpu"))
    with FakeStart(folder, *_WORDS, "--log-format", "json", env=env) as start:
        server = start.wait_ready().state()["server"]
        assert server["argv"][2 : 2 + len(_WORDS)] == list(_WORDS)
        assert "sesame" not in _shown(start)
        assert "VLLM_LOGGING_CONFIG_PATH" not in server["environment"]
        lines = [json.loads(line) for line in start.lines_with("starts again without preloading", "own lines")]
        assert [line["role"] for line in lines] == ["launcher"] * 2
        assert lines[1]["message"].endswith("vLLM starts without preloading")
        assert list(folder.glob("vcli-*")) == []


_PRINTED = ("EngineCore prints a line", "VllmWorker-0 prints a line", "EngineCore ends with", "the engine is killed")
"""Beginnings of lines that the fake vLLM prints for the tests without logging."""


def _lines(start: FakeStart) -> list[dict[str, Any]]:
    return [json.loads(line) for line in start.log.splitlines() if not line.startswith(_PRINTED)]


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_every_line_is_an_object(method, folder):
    env = environment(folder, VLLM_WORKER_MULTIPROC_METHOD=method)
    with FakeStart(folder, "--log-format", "json", "--worker-prints-error", env=env) as start:
        start.wait_ready()
        start.wait_logged("ready after")
        start.wait_logged("a library of the worker prints an error")
        state = start.state()
        assert start.terminate() == 0
        lines = _lines(start)
    by_message = {line["message"]: line for line in lines}
    assert by_message["the engine\nstarts"]["role"] == "EngineCore"
    assert by_message["worker 0 starts"]["role"] == "Worker_0"
    assert by_message["a library of the worker prints an error"]["role"] == "Worker_0"
    [access] = [line for line in lines if line["logger"] == "uvicorn.access"][:1]
    assert (access["path"], access["status"], access["role"]) == ("/health", 200, "APIServer")
    [ready] = [line for line in lines if line["message"].startswith("ready after")]
    assert (ready["role"], ready["phase"]) == ("launcher", "serving")
    assert len({line["pid"] for line in lines}) >= 3
    for process in (state["server"], state["engine"], *state["workers"]):
        own = {name for name in process["environment"] if name.startswith("VCLI_")}
        assert own == {"VCLI_PREFLIGHT", "VCLI_START_FOLDER"}, "the test's variable, and the mark of the start"


def test_text_with_the_date_in_utc_keeps_vllms_layout(folder):
    with FakeStart(folder, "--log-format", "text-utc", env=environment(folder)) as start:
        start.wait_ready()
        start.wait_logged("ready after")
        start.wait_logged("worker 0 starts")
        assert start.terminate() == 0
        date = r"INFO 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ"
        for pattern in (
            rf"{date} \(launcher\) [\w.]+: ready after .+",
            rf"\(Worker_0 pid=\d+\) {date} \[\w+\.py:\d+\] worker 0 starts",
            rf"\(EngineCore pid=\d+\) {date} \[\w+\.py:\d+\] the engine",
            rf"\(EngineCore pid=\d+\) {date} \[\w+\.py:\d+\] starts",
            rf"\(APIServer pid=\d+\) {date} \[\w+\.py:\d+\] .*GET /health.*",
        ):
            assert [line for line in start.log.splitlines() if re.fullmatch(pattern, line)], pattern


def test_the_variable_sets_the_format_and_the_flag_excludes_paths_from_the_access_log(folder):
    env = environment(folder, VCLI_LOG_FORMAT="json")
    arguments = ("--disable-access-log-for-endpoints", "/health, /metrics")
    with FakeStart(folder, *arguments, env=env) as start:
        start.wait_ready()
        start.ask("/nowhere")
        start.wait_logged("/nowhere")
        paths = {line["path"] for line in _lines(start) if line["logger"] == "uvicorn.access"}
    assert paths == {"/nowhere"}


def test_the_error_of_an_engine_is_one_line(folder):
    with FakeStart(folder, "--log-format=json", "--engine-fails") as start:
        assert start.process.wait(60) == 3
        [failure] = [line for line in _lines(start) if line["role"] == "EngineCore" and "exception" in line]
        assert failure["exception"].endswith("RuntimeError: the engine cannot be initialised")
        *_, last = _lines(start)
        assert last["level"] == "ERROR"
        assert last["digest"]["process"].startswith("EngineCore pid=")
        assert last["digest"]["text"] == "RuntimeError: the engine cannot be initialised"
        assert failure["exception"].splitlines()[-1] in Path(last["digest"]["log"]).read_text()


@pytest.mark.parametrize(
    ("arguments", "variables", "version", "reason"),
    [
        ("--log-config-file x.json", {}, "0.32.0", "vLLM's log has a configuration of its own"),
        ("", {"VLLM_CONFIGURE_LOGGING": "0"}, "0.32.0", "VLLM_CONFIGURE_LOGGING disables"),
        ("--distributed-executor-backend ray", {}, "0.32.0", "Ray starts processes"),
        ("", {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}, "0.30.0", "vLLM 0.30.0 writes the process before each line"),
    ],
    ids=["own-file", "left-alone", "ray", "older"],
)
def test_a_reason_explains_why_vllm_does_not_log_json(arguments, variables, version, reason, tmp_path, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    notice = set_log_format("json", InstalledVllm(version, tmp_path), VllmLine.of(arguments.split()), tmp_path)
    assert str(notice).startswith(f"--log-format json applies only to vllm-cli's own lines: {reason}")
    assert list(tmp_path.iterdir()) == []


def _entry(start: FakeStart, state: str) -> dict[str, Any]:
    """Waits for the entry with this state. On a busy machine, a single request may get no answer."""
    found: list[dict[str, Any]] = []

    def is_so() -> bool:
        found[:] = [e for e in json.loads(run_cli("ps", "--json").stdout) if e["pid"] == start.process.pid]
        return bool(found and found[0]["state"] == state)

    wait_until(is_so)
    return found[0]


def test_vllm_is_found_and_stopped_with_all_its_processes(folder):
    gate = folder / "gate"
    with FakeStart(folder, "model", "--served-model-name", "fake", "--gate", str(gate)) as start:
        assert _entry(start, "starting")["port"] == start.port
        gate.touch()
        entry = _entry(start, "ready")
        assert (entry["port"], entry["engine"], entry["model"]) == (start.port, "vllm", "fake")
        wait_until(lambda: set(_entry(start, "ready")["pids"]) == {start.process.pid, *(p.pid for p in start.family())})
        assert len(entry["pids"]) > 2
        assert run_cli("stop", start.port).returncode == 0
        assert start.process.wait(60) == 0


@needs_openssl
def test_a_vllm_with_tls_is_listed(folder):
    with FakeStart(folder, *make_certificate(folder, "server").flags) as start:
        assert _entry(start, "ready")["address"] == f"https://127.0.0.1:{start.port}"


_OFF = "WATCHDOG_USEC=0"


def _environment(folder: Path, manager: NotifySocket, **changes: str) -> dict[str, str]:
    return environment(folder, NOTIFY_SOCKET=manager.address, WATCHDOG_USEC="200000", **changes)


def test_a_service_manager_gets_every_phase_and_watchdog_notifications(folder):
    gate = folder / "gate"
    with NotifySocket() as manager, FakeStart(folder, "--gate", str(gate), env=_environment(folder, manager)) as start:
        wait_until(lambda: "STATUS=vllm" in manager.lines or start.process.poll() is not None)
        assert "STATUS=import vllm" in manager.lines
        assert "READY=1" not in manager.lines
        start.wait_logged("s: vllm")  # a phase of seconds is logged meanwhile
        gate.touch()
        wait_until(lambda: "READY=1" in manager.lines or start.process.poll() is not None)
        assert start.ask("/health")[0] == 200
        assert "NOTIFY_SOCKET" not in start.state()["server"]["environment"], "vLLM may notify the manager itself"
        messages = [message for message in list(manager.messages) if message != "WATCHDOG=1"]
        assert messages[-1] == f"READY=1\nSTATUS=ready: http://127.0.0.1:{start.port}"
        wait_until(lambda: manager.lines.count("WATCHDOG=1") >= 3)
        assert start.terminate() == 0
        wait_until(lambda: "STOPPING=1" in manager.lines)  # it was sent, but may not be read yet
        assert "STATUS=finishing running requests" in manager.lines
        assert _OFF not in manager.lines
        (line,) = start.lines_with("s: vllm")
        assert "starting for " in line


@pytest.mark.parametrize(
    ("arguments", "changes", "status", "state"),
    [
        (("--api-server-count", "2"), {}, "ready: http://", "ready"),
        (("--headless",), {}, "node without an API server", "not listening"),
        ((), {"VCLI_PLAIN_VLLM": "1"}, "vLLM accepts connections", "ready"),
        (("--api-server-count", "2"), {"VCLI_PLAIN_VLLM": "1"}, "vLLM accepts connections", "ready"),
    ],
    ids=["several-servers", "headless", "plain", "several servers, plain"],
)
def test_without_an_event_loop_or_early_port_it_is_listed_and_has_no_watchdog(
    arguments, changes, status, state, folder
):
    with (
        NotifySocket() as manager,
        FakeStart(folder, *arguments, env=_environment(folder, manager, **changes)) as start,
    ):
        wait_until(lambda: "READY=1" in manager.lines or start.process.poll() is not None)
        [ready] = [message for message in manager.messages if "READY=1" in message]
        assert _OFF in ready.splitlines()
        assert f"STATUS={status}" in ready
        entry = _entry(start, state)
        assert (entry["port"], entry["engine"]) == (None if "--headless" in arguments else start.port, "vllm")
        start.family()
        assert "WATCHDOG=1" not in manager.lines


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", None], ids=["any", "one", "uds"])
def test_a_plain_start_is_ready_when_vllm_answers(host, folder):
    gate = folder / "gate"
    arguments = [] if host else ["--uds", f"{folder}/socket"]
    with NotifySocket() as manager:
        variables = _environment(folder, manager, VCLI_PLAIN_VLLM="1")
        with FakeStart(folder, *arguments, "--gate", str(gate), host=host, env=variables) as start:
            start.wait_logged("EngineCore waits at its gate")
            assert "READY=1" not in manager.lines
            gate.touch()
            wait_until(lambda: "READY=1" in manager.lines or start.process.poll() is not None)
            assert manager.senders == {start.process.pid}


def test_a_port_in_use_is_an_error_and_the_last_status(folder):
    with NotifySocket() as manager, socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        done = run_fake(folder, "--host", "127.0.0.1", "--port", port, env=_environment(folder, manager))
        error = f"127.0.0.1:{port} is in use by another process"
        message = f"Error: {error}: stop it or choose another --port\nCode: VC-PORT-IN-USE\n"
        assert (done.returncode, done.stderr) == (3, message)
        wait_until(lambda: any(line.startswith(f"STATUS=failed: {error}") for line in manager.lines))


_WATCHED = ("--engine-watchdog-timeout", "3")


@pytest.mark.parametrize(
    ("title", "name", "num_servers"),
    [("VLLM::EngineCor", "EngineCore", 2), ("VLLM::Worker_0", "VllmWorker-0", 1)],
    ids=["engine", "worker"],
)
def test_a_stopped_process_ends_vllm_with_its_name(folder, title, name, num_servers):
    arguments = ("--api-server-count", str(num_servers)) if num_servers > 1 else ()
    with FakeStart(folder, *_WATCHED, *arguments) as start:
        start.wait_ready()
        readers = [StreamReader(start.url, 100_000) for _ in range(4)]
        process = start.named(title)
        process.suspend()
        wait_until(lambda: process.status() == "stopped")
        found = f"stopped by a signal: {name} (pid {process.pid})"
        for reader in readers:
            *_, last, end = reader.finish()
            assert last["error"]["message"].startswith("The engine hangs: it was silent for 3 s (--engine-watchdog")
            assert f" requests run; {found}" in last["error"]["message"]
            assert end is None
        assert start.process.wait(60) == 1
        assert f"Error: {name} (pid {process.pid}) failed while it served." in start.log
        assert "Cause: the engine hung: EngineHangError: it was silent for 3 s (--engine-watchdog" in start.log


@pytest.mark.parametrize(
    ("old", "new"),
    [("_call_utility_async", "_call_otherwise"), ("self.client_index", "self.index")],
    ids=["no call", "another client"],
)
def test_a_vllm_that_is_not_as_expected_has_no_watchdog_and_one_line(folder, old, new):
    with FakeStart(folder, *_WATCHED, env=environment(folder, rewrite(variant(folder), old, new))) as start:
        start.wait_ready()
        assert start.complete("A text") == "A text was read by worker 0"
        start.wait(lambda: start.lines_with("engine watchdog", "no watchdog (--engine-watchdog-timeout)"))
        assert len(start.lines_with("engine watchdog", "no watchdog (--engine-watchdog-timeout)")) == 1
        assert start.terminate() == 0


def _wait_stopped(start: FakeStart) -> None:
    def is_stopped() -> bool:
        """Whether the model is stopped. Its probes and reports do not keep the model running."""
        answers = [ask(f"http://127.0.0.1:{start.port}{path}") for path in ("/livez", "/metrics", "/health")]
        return answers[-1].headers.get("model-state") == "stopped"

    wait_until(is_stopped)


def test_vllm_ends_without_requests_and_the_next_one_starts_it_with_the_router_s_standby(folder, model):
    runtime = folder / "runtime"
    runtime.mkdir(mode=0o700)
    env = environment(folder, XDG_RUNTIME_DIR=str(runtime), **CHECKED)
    with FakeStart(folder, model, "--idle-stop", "1s", env=env) as start:
        start.wait_ready()
        start.wait(lambda: list(folder.glob("vcli-*/standby-*/*-vllm-compiled.sock")))
        _wait_stopped(start)
        wait_until(lambda: not start.children_with("--uds"))
        assert start.ask("/readyz?model")[0] == 503
        assert start.complete("one") == start.complete("one")
        start.wait(lambda: start.complete("one") and start.ask("/readyz?model")[0] == 200)  # stopped again if slow
        while "warm start: forked from the standby's process" not in start.log:
            _wait_stopped(start)  # on a busy machine, a template can take longer than 200 ms to answer
            start.complete("one")
        standbys = start.children_with("standby")
        assert len(standbys) == 1
        assert start.terminate() == 0
    assert not list(folder.glob("vcli-*"))
    assert not [each for each in standbys if psutil.pid_exists(each.pid) and not is_gone(each.pid)]
