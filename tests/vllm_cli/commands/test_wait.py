"""`vllm-cli wait`, `load` and `unload` with HTTP servers, and the output of commands while they wait."""

import json
import os
import pty
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.certificates import make_certificate, needs_openssl
from tests.support.cli import python_output
from tests.support.http_server import Request, ScriptedServer, serving
from tests.support.ports import free_port
from tests.support.terminal import read_terminal
from vllm_cli import terminal
from vllm_cli.commands import load
from vllm_cli.terminal import Reporter

STARTING = {
    "error": {"code": 503, "message": "Loading model", "type": "unavailable_error"},
    "status": "starting",
    "phase": "import_server",
    "progress": 0.4,
    "elapsed_s": 1.0,
    "eta_s": 1.5,
}
FAILED = STARTING | {"status": "failed", "error": {"message": "no such model"}}


@pytest.fixture
def serve() -> Iterator[Callable[..., ScriptedServer]]:
    """A function that starts a server. It sends these answers in turn, then repeats the last one."""

    def start(*answers: Any, port: int = 0) -> ScriptedServer:
        left = list(answers)
        server = ScriptedServer(lambda _: left.pop(0) if len(left) > 1 else left[0], port)
        return running.enter_context(serving(server))

    with ExitStack() as running:
        yield start


def _greet(handler: Any) -> None:
    handler.wfile.write(b"220 mail.example ESMTP\r\n")
    handler.close_connection = True


READY = (200, b"")
OUTCOMES = {
    "ready": ([READY], 0, "is ready after ", "is ready after "),
    "phases": (
        [(503, STARTING), (503, STARTING | {"phase": "load_weights"}), READY],
        *(0, "import server  [########------------]  40%  about 1.5 s left", "is ready"),
    ),
    "failed": ([(503, STARTING), (503, FAILED)], 1, "import server", "will not become ready: no such model"),
    "dead": ([(503, FAILED | {"status": "dead"})], 1, "", "will not become ready: no such model"),
    "empty": ([(500, b""), READY], 0, "", "is ready"),
    "proxy": ([(502, b"<html>"), READY], 0, "", "is ready"),
    "list": ([(503, [1]), READY], 0, "", "is ready"),
    "odd": ([(503, {"error": 1, "progress": "much"}), READY], 0, "", "is ready"),
    "no HTTP": ([_greet, READY], 0, "does not speak HTTP", "is ready"),
    "no such path": ([(404, b"")], 1, "", "/health answers 404"),
}
"""What a server answers in turn -> exit code, and parts of the first and the last line."""


@pytest.mark.parametrize(("answers", "code", "first", "last"), OUTCOMES.values(), ids=OUTCOMES)
def test_the_wait_ends_with_readiness_or_with_a_failure(answers, code, first, last, serve, invoke):
    server = serve(*answers)
    done = invoke("wait", server.url, "--interval", "0.01")
    lines = done.stderr.splitlines()
    assert (done.returncode, first in lines[0], last in lines[-1]) == (code, True, True), lines
    assert server.paths == ["/health"] * len(answers)


_SOME = b"vllm_cli:cuda_graphs_captured 20.0\nvllm_cli:cuda_graphs_total 40.0\n"
_ALL = _SOME.replace(b" 20", b" 40")
_OF_ROUTER = b'vllm_cli:cuda_graphs_captured{model="a"} 1.0\nvllm_cli:cuda_graphs_total{model="a"} 2.0\n'
_OURS = b"vllm_cli:engine_silence_seconds 0.0\n"
_STARTED = b'vllm_cli:start_info{start_mode="cold"} 1.0\n'


@pytest.mark.parametrize(
    ("metrics", "shown"),
    [
        ((_SOME, _ALL + _STARTED), "20 of 40 CUDA graphs are captured  [##########----------]  50%"),
        ((_OF_ROUTER, _STARTED), "1 of 2 CUDA graphs are captured"),
        ((_OURS, _OURS + _STARTED), "its CUDA graphs are not known yet"),
        ((_OURS, _OURS, _SOME, _ALL + _STARTED), "its CUDA graphs are not known yet"),
        ((_ALL + _STARTED,), None),
        ((_STARTED,), None),
        ((b"vllm:num_requests_running 0.0\n",), None),
        ((b"",), None),
    ],
    ids=["some", "labels", "not exported yet", "exported later", "all", "eager", "plain vLLM", "no metrics"],
)
def test_the_wait_for_graphs_ends_with_the_last_one(serve, invoke, metrics, shown):
    server = serve(*[answer for text in metrics for answer in ((200, b""), (200, text))])
    done = invoke("wait", server.url, "--graphs", "--interval", "0.01")
    assert done.returncode == 0
    assert server.paths == ["/health", "/metrics"] * len(metrics)
    first = done.stderr.splitlines()[0]
    assert shown in first if shown else "is ready after" in first


def test_a_server_that_does_not_listen_yet_is_waited_for(serve):
    port = free_port()
    arguments = [sys.executable, "-m", "vllm_cli", "wait", "--port", str(port), "--host", "0.0.0.0"]
    arguments += ["--interval", "0.05"]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as waiting:
        assert "connection refused" in waiting.stderr.readline()
        serve((200, b""), port=port)
        assert waiting.wait(120) == 0


def test_the_timeout_holds_for_a_server_that_accepts_and_never_responds(invoke):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        done = invoke("wait", "--port", silent.getsockname()[1], "--timeout", "0.3")
    assert done.returncode == 4
    assert re.search(r"was not ready after 0.3 s: no answer within 0\.\d+ s", done.stderr)


def test_json_prints_the_outcome_of_another_path_and_quiet_prints_nothing(serve, invoke):
    server = serve((503, STARTING), (503, FAILED))
    arguments = ("--path", "/readyz", "--json", "--quiet", "--interval", "0.01")
    done = invoke("wait", f"{server.url}/base/v1/", *arguments)
    assert server.paths == ["/base/readyz"] * 2
    content = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (1, "")
    assert content["url"].startswith("http://127.0.0.1:")
    assert (content["status"], content["reason"], content["num_requests"]) == ("failed", "no such model", 2)


def test_a_unix_socket_may_have_a_path_of_any_length(tmp_path, invoke, monkeypatch):
    folder = tmp_path / ("x" * 120)  # longer than a socket address may be; the server binds it from inside the folder
    folder.mkdir()
    monkeypatch.chdir(folder)
    with serving(ScriptedServer(lambda _: (200,), "s.sock")):
        for arguments in (("--uds", folder / "s.sock"), (f"unix:{folder}/s.sock",), (f"unix://{folder}/s.sock",)):
            done = invoke("wait", *arguments, "--timeout", "60")
            assert done.returncode == 0, done.stderr


def test_the_wait_lasts_while_the_process_runs_which_no_zombie_does(invoke):
    with subprocess.Popen([sys.executable, "-S", "-c", "pass"]) as process:
        while Path(f"/proc/{process.pid}/stat").read_text().split()[2] != "Z":
            time.sleep(0.01)
        done = invoke("wait", "--port", free_port(), "--pid", process.pid)
    assert done.returncode == 1
    assert f"process {process.pid} has ended" in done.stderr
    assert invoke("wait", "--port", free_port(), "--pid", os.getpid(), "--timeout", "0.3").returncode == 4


@needs_openssl
def test_https_works_with_the_certificate_of_the_server_or_its_authority_or_unverified(serve, tmp_path, invoke):
    """The server's names another host. The authority's may lack the critical mark that RFC 5280 requires."""
    authority = make_certificate(tmp_path, "authority", "basicConstraints=CA:TRUE")
    made = make_certificate(
        tmp_path, "server", "basicConstraints=critical,CA:FALSE", names="DNS:somewhere-else", signer=authority
    )
    server = serve((200, b""))
    server.use_tls(made)
    stranger = invoke("wait", server.url)
    assert stranger.returncode == 1
    assert "its certificate is not trusted" in stranger.stderr
    own, signer = (("--ssl-certfile", str(each.certificate)) for each in (made, authority))
    place = ("--port", str(server.server_port))
    for arguments in (
        *((server.url, "--insecure"), (server.url, *own), (server.url, *signer)),
        *((*place, *own), (f"127.0.0.1:{server.server_port}", "--ssl", *own)),
    ):
        done = invoke("wait", *arguments)
        assert done.returncode == 0, done.stderr


def test_on_a_terminal_one_line_is_rewritten(serve):
    server = serve((503, STARTING), (503, STARTING), (200, b""))
    ours, theirs = pty.openpty()
    arguments = [sys.executable, "-m", "vllm_cli", "wait", server.url, "--interval", "0.12"]
    waiting = subprocess.Popen(arguments, stderr=theirs)
    os.close(theirs)
    assert waiting.wait(120) == 0
    text = read_terminal(ours)
    assert text.count("\r\x1b[K") >= 3
    assert text.count("\n") == 1
    assert "import server" in text


def test_wait_imports_only_the_standard_library_and_click(serve):
    code = (
        "import sys; from vllm_cli.main import main; code = main(['wait', sys.argv[1]]);"
        "print(*{name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names); sys.exit(code)"
    )
    output = python_output(code, serve((200, b"")).url)
    third_party = {name for name in output.split() if not name.startswith("__editable__")}
    ours = {"__main__", "base", "envs", "router", "server", "startup", "vllm_cli"}
    assert third_party - ours <= {"click", "sitecustomize", "_distutils_hack"}


def test_a_change_of_state_and_progress_after_the_interval_are_lines(capsys, monkeypatch):
    reporter = Reporter()
    for text, state in (("1 s importing", "importing"), ("2 s importing", "importing"), ("3 s loading", "loading")):
        reporter.update(text, state)
    assert capsys.readouterr().err == "1 s importing\n3 s loading\n"
    times_s = iter((0.0, 0.9, 1.1, 1.2))
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: next(times_s)))
    reporter = Reporter(interval_s=1.0)
    for text in ("10 %", "20 %", "30 %"):
        reporter.update(text)
    monkeypatch.undo()
    assert capsys.readouterr().err == "20 %\n"


def test_the_wait_for_graphs_fails_if_some_are_given_up(serve, invoke):
    metrics = _SOME + b"vllm_cli:cuda_graphs_given_up 20.0\n" + _STARTED
    done = invoke("wait", serve(READY, (200, metrics)).url, "--graphs")
    assert done.returncode == 1
    assert "is ready, but not with all CUDA graphs: 20 of 40 CUDA graphs are captured, and 20 are" in done.stderr


_NEAR = "The model `qwem` does not exist. Did you mean `qwen`?"
_FAILED = {"error": {"message": "qwen failed: \x1b[2Jnot enough memory", "type": "unavailable_error", "code": 503}}


@pytest.fixture
def start() -> Iterator[Callable[..., ScriptedServer]]:
    """A function that starts a server with an answer to each POST. Its status data is a router's or not."""

    def start_server(*answer: Any, is_router: bool = True) -> ScriptedServer:
        own = {"models": []} if is_router else {"model": "smol"}
        server = ScriptedServer(lambda request: answer if request.method == "POST" else (200, own))
        return running.enter_context(serving(server))

    with ExitStack() as running:
        yield start_server


@pytest.mark.parametrize(("verb", "ending"), [("load", "ready"), ("sleep", "asleep"), ("unload", "stopped")])
def test_a_model_is_named_in_the_path_and_the_outcome_is_reported(verb, ending, start, invoke):
    server = start(200, {"status": ending})
    done = invoke(verb, "org/model:tag", "--port", server.server_port, "--json", "--api-key", "secret")
    assert done.returncode == 0
    (post,) = (request for request in server.requests if request.method == "POST")
    assert (post.path, post.headers["Authorization"]) == (f"/v1/models/org/model:tag/{verb}", "Bearer secret")
    outcome = json.loads(done.stdout)
    assert (outcome["model"], outcome["status"], outcome["reason"]) == ("org/model:tag", ending, None)
    assert outcome["took_s"] >= 0
    assert done.stderr.startswith("org/model:tag ")


def test_near_names_and_the_reason_of_a_failure_are_shown_without_control_characters(start, invoke):
    unknown = invoke("load", "qwem", "--url", f"{start(404, {'error': {'message': _NEAR, 'code': 404}}).url}/v1")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr == f"Error: The server answered 404: {_NEAR}\n"
    server = start(503, _FAILED)
    done = invoke("load", "qwen", "--url", server.url, "--json")
    assert done.returncode == 1
    assert "not enough memory" in done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    assert json.loads(done.stdout)["status"] == "failed"
    quiet = invoke("load", "qwen", "--url", server.url, "-q")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (1, "", "")


@pytest.mark.parametrize("status", [404, 405])
def test_a_server_with_one_model_is_named_as_such(status, start, invoke):
    server = start(status, {"error": {"message": "Not Found"}}, is_router=False)
    done = invoke("unload", "smol", "--url", server.url)
    assert done.returncode == 1
    assert "has one model" in done.stderr


def test_a_load_that_takes_too_long_ends_with_a_code_of_its_own(start, invoke):
    is_over = threading.Event()
    server = start(200, {})
    server.decide = lambda _: (200, {}) if is_over.wait(60) else ()
    done = invoke("load", "qwen", "--url", server.url, "--timeout", "0.3", "--json")
    is_over.set()
    assert done.returncode == 4
    assert json.loads(done.stdout)["status"] == "timed out"


def test_what_the_router_waits_for_is_reported(start, invoke, monkeypatch):
    monkeypatch.setattr(load, "_POLL_S", 0.05)
    monkeypatch.setattr(load, "_ANSWER_S", 60.0)
    is_over = threading.Event()
    server = start(200, {})
    row = {"id": "org/qwen", "aliases": ["qwen"], "status": "draining", "num_running": 3, "progress": None}

    def decide(request: Request) -> tuple[int, Any]:
        if request.method == "POST":
            return (200, {}) if is_over.wait(60) else (504, {})
        if len(server.requests) > 2:
            is_over.set()
        return 200, {"models": [{**row, "id": "other", "aliases": []}, row]}

    server.decide = decide
    done = invoke("unload", "qwen", "--url", server.url)
    assert done.returncode == 0
    assert re.match(r" +[\d.]+ s  qwen is draining, 3 requests run\nqwen has stopped after ", done.stderr)
