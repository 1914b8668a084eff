"""The port answers from the first moment on, and passes to vLLM without a lost connection."""

import json
import socket
from contextlib import suppress

import psutil
import pytest

from tests.startup.vllm.fake_start import FakeStart, environment
from tests.support.http_client import RawClient
from tests.support.openai_client import RepeatingClients
from tests.support.ports import free_port
from tests.support.waiting import wait_until

pytestmark = pytest.mark.thorough

_IN_ORDER = (0, 503, 200)
"""The answers to a client: refused, starting, serving."""


@pytest.mark.parametrize("num_servers", [1, 2], ids=["one-server", "two-servers"])
def test_every_connection_during_a_start_is_answered(num_servers, folder):
    gate = folder / "gate"
    port = free_port()
    words = ("--gate", str(gate), "--api-server-count", str(num_servers))
    with FakeStart(folder, *words, port=port) as start, RepeatingClients(port, *["/health"] * 8) as clients:
        clients.wait_for_more(200, 503)
        start.wait_logged("EngineCore prints a line")
        gate.touch()
        start.wait_ready()
        clients.wait_for_more(200, 200)
        assert start.complete("A text") == "A text was read by worker 0"
    assert not clients.lost
    for statuses in clients.statuses:
        assert statuses == sorted(statuses, key=_IN_ORDER.index)


@pytest.mark.smoke
def test_probes_get_the_phase_until_vllm_serves(folder):
    gate = folder / "gate"
    with FakeStart(folder, "some/model", "--gate", str(gate)) as start:
        start.wait_status(503)
        start.wait_logged("EngineCore prints a line")
        answer = json.loads(start.ask("/v1/models")[1])
        assert answer["phase"]
        assert answer["status"] == "starting"
        assert answer["error"]["code"] == 503
        assert start.ask("/livez")[0] == 200
        gate.touch()
        start.wait_ready()
        assert start.ask("/startupz")[0] == 404  # vLLM's own routes, /livez and /readyz are left


@pytest.mark.parametrize("num_servers", [1, 2], ids=["one-server", "two-servers"])
def test_with_listen_when_ready_connections_are_refused_until_vllm_serves(num_servers, folder):
    gate = folder / "gate"
    port = free_port()
    words = ("--gate", str(gate), "--api-server-count", str(num_servers), "--listen-when-ready")
    with FakeStart(folder, *words, port=port) as start, RepeatingClients(port, *["/health"] * 4) as clients:
        start.wait_logged("EngineCore prints a line")
        clients.wait_for_more(200, 0)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        gate.touch()
        start.wait_ready()
        clients.wait_for_more(200, 200)
        assert start.complete("A text") == "A text was read by worker 0"
        assert len(start.responders()) == (num_servers == 1)  # it answers /health, as without the flag
    assert not clients.lost
    for statuses in clients.statuses:
        assert statuses == sorted(statuses, key=(0, 200).index)


def test_unix_socket_is_handed_over(folder):
    gate = folder / "gate"
    path = folder / "socket"

    def status() -> int | None:
        with suppress(OSError), RawClient(str(path)) as client:
            return client.get("/health").read().status
        return None

    with FakeStart(folder, "--uds", str(path), "--gate", str(gate), host=None) as start:
        wait_until(lambda: status() == 503 or start.process.poll() is not None)
        start.wait_logged("EngineCore prints a line")
        gate.touch()
        wait_until(lambda: status() == 200 or start.process.poll() is not None)
        assert status() == 200
        start.family()


def test_a_headless_start_opens_no_port_and_has_no_deadline(folder):
    with FakeStart(folder, "--headless", "--startup-timeout", "0.001") as start:
        start.wait_logged("headless engine")
        assert [c for c in start.root.net_connections("tcp") if c.status == "LISTEN"] == []
        engine = start.named("VLLM::EngineCor")
        assert start.kind_of(engine.pid) == "forkserver"
        assert start.terminate() == 0


def test_several_api_servers_share_the_port_and_the_forkserver(folder):
    with FakeStart(folder, "--api-server-count", "2") as start:
        start.wait_ready()
        wait_until(lambda: start.responders() == [])
        (forkserver,) = start.forkservers()
        one = start.state()["server"]
        psutil.Process(one["pid"]).suspend()
        other = start.state()["server"]
        psutil.Process(one["pid"]).resume()
        assert {one["name"], other["name"]} == {"ApiServer_0", "ApiServer_1"}
        for server in (one, other):
            assert server["ppid"] == forkserver.pid
            assert server["parent"] == start.process.pid
            assert server["imported_in"]["vllm.entrypoints.launcher"] == forkserver.pid
        assert start.terminate() == 0
        start.wait_all_gone()


def test_the_report_contains_vllms_instrumented_functions(folder):
    report = folder / "report.json"
    words = ("--startup-report", str(report))
    with FakeStart(folder, *words, env=environment(folder)) as start:
        start.wait_ready()
        wait_until(report.is_file)
        content = json.dumps(json.loads(report.read_text()))
        assert all(
            name in content for name in ("preload_imports", "loading_cpu", "asyncmpclient_init", "start_EngineCore")
        )
