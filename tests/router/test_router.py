"""A router as a process: its end, signals, access, routes, a changed models file, and models that hang."""

import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import aiohttp
import psutil
import pytest
from aiohttp import web

from envs.registry import env
from router.child.server import OwnServer
from router.http.router_answers import RouterAnswers
from tests.e2e.server_process import ServerProcess
from tests.router.router_process import RouterProcess, embedded, foreign, wait_marked
from tests.startup.port.notify_socket import NotifySocket
from tests.startup.vllm.fake_start import environment
from tests.support.certificates import Certificate, make_certificate, needs_openssl
from tests.support.cli import CLI
from tests.support.folders import short_folder
from tests.support.http_client import RawClient, StreamReader, ask
from tests.support.ports import free_port
from tests.support.waiting import GONE_S, assert_gone, is_gone, wait_listening, wait_until

pytestmark = pytest.mark.thorough


def test_a_killed_router_leaves_no_process_and_no_folder_behind(tmp_path):
    with RouterProcess(tmp_path, {"a": foreign("has-children"), "b": foreign()}) as router:
        assert router.post("a").status == router.post("b").status == 200
        folder = Path(psutil.Process(router.pid("a")).environ()[env.VCLI_ROUTER.name]).parent
        family = wait_marked(f"{folder}/", 5)  # two servers, and three processes that the one has started
        router.terminate(signal.SIGKILL)
        assert_gone(family)
        wait_until(lambda: not folder.exists())


def test_sigterm_lets_running_requests_end_and_breaks_starts_off(tiny_llama, tmp_path):
    ours = embedded(tiny_llama, args=["--max-model-len", "4096"])
    may_answer = tmp_path / "may-answer"
    models = {"ours": ours, "a": foreign("waits", str(may_answer)), "b": foreign("never-listens")}
    with RouterProcess(tmp_path, models) as router:
        assert router.post("ours").status == 200
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(router.post, "b")
            wait_until(lambda: router.models()["b"]["pid"])
            starting = router.tree("b")
            running = pool.submit(router.post, "a")
            wait_until(lambda: router.models()["a"]["num_running"] == 1)
            stream = StreamReader(f"{router.url}/upstream/ours", 1000)
            router.process.send_signal(signal.SIGTERM)
            assert waiting.result().status == 503
            may_answer.touch()
            assert running.result().status == 200
            events = stream.finish()
        assert events[-1] is None, "the stream is complete"
        assert len(events) > 700
        assert router.process.wait(GONE_S) == 0
        assert_gone(starting)


def test_a_second_signal_ends_all_at_once(tmp_path):
    with RouterProcess(tmp_path, {"a": foreign("ignores-sigterm", "has-children")}) as router:
        assert router.post("a").status == 200
        family = router.tree("a")
        router.process.send_signal(signal.SIGTERM)
        router.wait_logged("stopping: ")
        wait_until(lambda: router.process.poll() is not None or router.process.send_signal(signal.SIGTERM))
        assert router.process.wait(GONE_S) == -signal.SIGTERM
        assert_gone(family)


def test_a_service_manager_is_told_of_the_start_and_the_end(tmp_path):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, NotifySocket(f"{folder}/notify") as manager:
        environment = {env.NOTIFY_SOCKET.name: manager.address}
        models = {"a": foreign("has-children", preload=True), "b": foreign("dies", preload=True)}
        with RouterProcess(tmp_path, models, environment=environment) as router:
            wait_until(lambda: "READY=1" in manager.lines)
            (message,) = [each for each in manager.messages if not each.startswith("STATUS=")]
            assert message.startswith("READY=1\nSTATUS=ready: http://")
            assert (router.state("a"), router.state("b")) == ("ready", "failed")
            variables = ask(f"{router.url}/upstream/a/env").json["variables"]
            assert env.NOTIFY_SOCKET.name not in variables
            assert router.terminate() == 0
            wait_until(lambda: "STOPPING=1" in manager.lines)


def test_the_port_stays_open_for_the_drain_grace_also_without_a_process(tmp_path):
    with RouterProcess(tmp_path, {"a": foreign()}, "--drain-grace", "600") as router:
        assert router.post("a").status == 200
        family = router.tree("a")
        router.process.send_signal(signal.SIGTERM)
        assert_gone(family)
        with RawClient(router.port) as client:
            health = client.get("/health").read()
        assert (health.status, health.headers["connection"], router.post("a").status) == (503, "close", 503)
        assert router.process.poll() is None
        wait_until(lambda: "stopping at once" in router.log or router.process.send_signal(signal.SIGTERM))
        assert router.process.wait(GONE_S) == -signal.SIGTERM


@needs_openssl
def test_a_renewed_certificate_counts_for_new_connections(tmp_path):
    used = make_certificate(tmp_path, "used")
    first, second = used.certificate.read_bytes(), make_certificate(tmp_path, "second")
    arguments = (*used.flags, "--enable-ssl-refresh")
    with RouterProcess(tmp_path, {"a": foreign()}, *arguments, wait=False) as router:
        wait_listening(router.port)
        assert _certificate(router.port) == first.decode()
        assert _health(router, used) == 200
        shutil.copyfile(second.key, used.key)
        shutil.copyfile(second.certificate, used.certificate)
        wait_until(lambda: _certificate(router.port) == second.certificate.read_text())
        assert _health(router, second) == 200


def test_a_file_that_cannot_be_used_is_named(tmp_path):
    broken = tmp_path / "broken"
    broken.touch()
    with RouterProcess(tmp_path, {"a": foreign()}, "--api-key-file", str(broken), wait=False) as router:
        assert router.process.wait(GONE_S) == 3
        assert router.log.splitlines()[1:] == ["Code: VC-KEYS-OR-CERTIFICATES"]
        assert f"--api-key-file {broken} holds no" in router.log


def test_a_port_in_use_is_an_error_and_leaves_no_folder(tmp_path):
    with tempfile.TemporaryDirectory(dir="/tmp") as short, socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = ("--port", str(other.getsockname()[1]))
        environment = {env.TMPDIR.name: short}
        with RouterProcess(tmp_path, {"a": foreign()}, *port, environment=environment, wait=False) as router:
            assert router.process.wait(GONE_S) == 3
            assert "is in use by another process" in router.log
        assert not list(Path(short).iterdir())


def test_a_unix_socket_takes_the_place_of_a_port(tmp_path):
    path = tmp_path / "s"
    with RouterProcess(tmp_path, {"a": foreign()}, "--uds", str(path), wait=False):
        with socket.socket(socket.AF_UNIX) as probe:
            wait_until(lambda: probe.connect_ex(str(path)) == 0)
        with RawClient(str(path)) as client:
            assert client.get("/health").read().status == 200


def test_models_of_the_command_line_end_by_a_signal_that_ends_a_server(tiny_llama, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    port = free_port()
    arguments = [str(tiny_llama), str(other), "--engine", "embedded", "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen([*CLI, "serve", *arguments]) as router:
        wait_until(lambda: ask(f"http://127.0.0.1:{port}/health").status == 200)
        models = ask(f"http://127.0.0.1:{port}/v1/models").json["data"]
        router.send_signal(signal.SIGHUP)
        assert router.wait(GONE_S) == -signal.SIGHUP
    assert {model["id"] for model in models} == {tiny_llama.name, "other"}


def _certificate(port: int) -> str:
    return ssl.get_server_certificate(("127.0.0.1", port))


def _health(router: RouterProcess, trusted: Certificate) -> int:
    return ask(f"https://127.0.0.1:{router.port}/health", context=trusted.client_context()).status


@pytest.mark.parametrize("number", [60, pytest.param(200, marks=pytest.mark.slow)])
def test_no_request_fails_while_a_model_is_changed(tiny_llama, tmp_path, number):
    """docs/figures.md has the longest time of a request."""
    with RouterProcess(tmp_path, {"a": embedded(tiny_llama)}, "--standby", "off") as router:
        assert router.post("a").status == 200
        before = router.pid("a")

        def ask(_: int) -> tuple[int, float]:
            begin_s = time.monotonic()
            return router.post("a", timeout_s=600).status, time.monotonic() - begin_s

        with ThreadPoolExecutor(16) as pool:
            asked = []
            for index in range(number):
                if index == number // 10:
                    router.write({"a": {**embedded(tiny_llama), "args": ["--max-model-len", "128"]}})
                    router.process.send_signal(signal.SIGHUP)
                asked.append(pool.submit(ask, index))
                time.sleep(0.25)
            answers = [each.result() for each in asked]
        router.wait(lambda: router.pid("a") != before and is_gone(before))
        print(f"longest: {max(took_s for _, took_s in answers):.2f} s")
        assert {status for status, _ in answers} == {200}
        assert "has failed" not in router.log


def test_a_preloaded_model_is_started_again_when_it_is_changed_or_added(tmp_path):
    """The model starts without a request. An unchanged model that was unloaded by hand stays stopped."""
    same = foreign("same", preload=True)
    with RouterProcess(tmp_path, {"a": foreign("one", preload=True), "same": same, "off": foreign("off")}) as router:
        router.wait_state("a", "ready")
        router.wait_state("same", "ready")
        before = router.pid("a")
        assert router.ask("/models/unload", {"model": "same"}).json["status"] == "stopped"
        new = foreign("new", preload=True)
        router.write({"a": foreign("two", preload=True), "same": same, "off": foreign("off", preload=True), "new": new})
        for name in ("a", "off", "new"):
            router.wait(lambda name=name: router.models().get(name, {}).get("status") == "ready")
        assert router.pid("a") != before
        assert router.ask("/v1/completions", {"model": "a"}).json["arguments"] == ["two"]
        assert router.state("same") == "stopped"


def _stop(processes: list[psutil.Process]) -> None:
    for process in processes:
        process.send_signal(signal.SIGSTOP)


@pytest.mark.parametrize(
    ("hung", "answers", "why"),
    [
        ("engine", {500}, "a has failed: The server hangs. The engine hangs: it was silent for 4"),
        ("server", {200, 503}, "a has failed: The server hangs. It has not answered for 4"),
    ],
    ids=["engine", "server"],
)
def test_a_hung_model_with_a_request_gives_its_room_to_the_one_that_waits(hung, answers, why, tiny_llama, tmp_path):
    """A request may end with 200: if the hung server has not read it, the next process gets it."""
    models = {name: embedded(tiny_llama) for name in "ab"}
    arguments = ("--max-running", "1", "--max-wait", "5", "--standby", "off")
    statuses: list[int] = []
    with RouterProcess(tmp_path, models, *arguments) as router:
        assert router.post("a").status == 200
        _stop(router.tree("a")[1 if hung == "engine" else 0 :])  # the API process is the first one
        waiting = threading.Thread(target=lambda: statuses.append(router.post("a", timeout_s=600).status))
        waiting.start()
        router.wait(lambda: router.models()["a"]["num_running"] == 1)
        assert router.post("b", timeout_s=600).status == 200
        waiting.join()
        assert set(statuses) <= answers
        router.wait_logged(why)
        assert "others wait for its memory" in router.log


def test_a_server_that_recovers_goes_on_and_one_that_does_not_is_unloaded_within_seconds(tiny_llama, tmp_path):
    with RouterProcess(tmp_path, {"a": embedded(tiny_llama)}, "--standby", "off") as router:
        assert router.post("a").status == 200
        pid, family = router.pid("a"), router.tree("a")
        _stop(family)
        wait_until(lambda: ask(f"{router.url}/readyz?model=a").status == 503)
        for process in family:
            process.send_signal(signal.SIGCONT)
        wait_until(lambda: ask(f"{router.url}/readyz?model=a").status == 200)
        assert (router.post("a").status, router.pid("a")) == (200, pid)
        _stop(family)
        assert router.ask("/v1/models/a/unload", {}, timeout_s=600).status == 200
        assert "a does not answer. It is killed after 5 s" in router.log


@pytest.mark.parametrize(
    "body", [b"no json", b"\xff", b"[]", b'{"status": "loading"}'], ids=["text", "bytes", "list", "other"]
)
async def test_an_answer_that_is_not_json_is_no_silence(body, tmp_path):
    async def health(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=503, body=body)

    runner = web.ServerRunner(web.Server(health))
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "s")).start()
    server = OwnServer((), str(tmp_path / "s"))
    try:
        async with aiohttp.ClientSession(connector=server.connector, connector_owner=False) as session:
            assert not (await server.poll(session)).hang
    finally:
        await server.connector.close()
        await runner.cleanup()


# Routes that only some servers have. A router with one model answers in each of its states as with several.
_TABLE: Final = """
path                          embedded vllm several one stopped asleep
GET /                         200      200  200     200 200     200
GET /status.json              200      200  200     200 200     200
GET /health                   200      200  200     200 200     200
GET /readyz                   200      200  200     200 200     200
GET /readyz?model             200      200  200     200 503     200
GET /livez                    200      200  200     200 200     200
GET /startupz                 200      200  200     200 200     200
GET /metrics                  200      200  200     200 200     200
GET /v1/models                200      200  200     200 200     200
GET /v1/models/m              200      -    200     200 200     200
GET /ping                     200      -    200     200 200     200
GET /version                  200      -    200     200 200     200
GET /load                     200      -    200     200 200     200
GET /models                   404      404  200     200 200     200
GET /running                  404      404  200     200 200     200
GET /models/load              404      404  404     405 405     405
POST /v1/models/m/sleep       405      404  200     200 409     200
POST /v1/models/m/load        405      404  200     200 200     200
POST /v1/models/m/unload      405      404  200     200 200     200
POST /models/load             404      404  200     200 200     200
POST /models/unload           404      404  200     200 200     200
POST /api/models/unload       404      404  200     200 200     200
GET /unload                   404      404  200     200 200     200
"""
"""`-`: the fake vLLM lacks this path of vLLM. Each order begins in the state of its column."""
_FLAGS: Final = ["--enforce-eager", "--enable-sleep-mode", "--prefetch", "off"]
_SMALL: Final = {"VLLM_CPU_KVCACHE_SPACE": "1"}
"""A KV cache of 1 GiB. Without a size, nearly all of the machine's memory would have to be free."""
_HEAD, *_ROWS = [line.split() for line in _TABLE.strip().splitlines()]
_KINDS: Final = _HEAD[1:]


def _words(kind: str, folder: Path, tiny_llama: Path) -> tuple[list[str], dict[str, str]]:
    if kind == "embedded":
        return [str(tiny_llama), "--engine", "embedded", "--served-model-name", "m"], {}
    arguments = ["fake", "--engine", "vllm", "--served-model-name", "m", *_FLAGS]
    more = {"vllm": [], "asleep": ["--idle-sleep", "1s"]}.get(kind, ["--idle-stop", "600s"])
    quiet = [] if kind == "vllm" else ["--standby", "off"]
    return [*arguments, *more, *quiet], environment(folder, **_SMALL)


def _start(kind: str, folder: Path, tiny_llama: Path) -> ServerProcess:
    arguments, variables = _words(kind, folder, tiny_llama)
    if kind != "several":
        return ServerProcess(arguments, environment=variables)
    entry = {"model": "fake", "engine": "vllm", "args": _FLAGS}
    return RouterProcess(
        folder, {"m": entry, "other": entry}, "--standby", "off", environment=environment(folder, **_SMALL)
    )


def _bring(server: ServerProcess, kind: str) -> None:
    if kind in ("several", "one"):
        assert server.ask("/v1/models/m/load", {}).status == 200
    elif kind == "stopped":
        assert server.ask("/v1/models/m/unload", {}).status == 200
    elif kind == "asleep":
        assert server.ask("/v1/models/m/load", {}).status == 200
        server.wait(lambda: server.ask("/health").headers.get("model-state") == "asleep")


@pytest.mark.parametrize("kind", _KINDS)
def test_each_route_of_each_kind_of_server(tiny_llama, kind):
    with short_folder() as folder, _start(kind, folder, tiny_llama) as server:
        if kind == "stopped":  # the first start, which the router itself begins, would begin again after an unload
            assert server.ask("/v1/models/m/load", {}).status == 200
        found: dict[str, str] = {}
        for method, path, *_ in _ROWS:
            if method == "POST" or path in ("/", "/unload"):
                _bring(server, kind)
            answer = server.ask(path, {"model": "m"} if method == "POST" else None)
            found[f"{method} {path}"] = str(answer.status)
        expected = {f"{method} {path}": values[_KINDS.index(kind)] for method, path, *values in _ROWS}
        assert {path: status for path, status in found.items() if expected[path] != "-"} == {
            path: status for path, status in expected.items() if status != "-"
        }
        server.terminate()


def test_the_table_has_each_route_of_the_routers():
    named = {path.removesuffix("?model") for _, path, *_ in _ROWS}
    source = Path(RouterAnswers.__init__.__code__.co_filename).read_text()
    quoted = {line.split('"')[1] for line in source.splitlines() if line.strip().startswith('"/') and '": {"' in line}
    assert quoted <= named
