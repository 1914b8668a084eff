"""The port answers from the first moment on. vLLM takes over the port without a lost connection."""

import json
import socket
from contextlib import suppress

import pytest

from tests.startup.vllm.fake_start import CHECKED, FakeStart, environment
from tests.support.http_client import RawClient
from tests.support.openai_client import RepeatingClients
from tests.support.ports import free_port
from tests.support.processes import stopped
from tests.support.waiting import wait_until

pytestmark = pytest.mark.thorough


@pytest.mark.parametrize("frontend", ["one-server", "two-servers"])
@pytest.mark.parametrize("listens", ["at-once", "when-ready"])
def test_every_connection_during_a_start_is_answered_or_refused(listens, frontend, folder):
    """With `--listen-when-ready`, all are refused until vLLM serves, and no other program gets the port."""
    gate, port = folder / "gate", free_port()
    words = ("--gate", str(gate), *(("--api-server-count", "2") if frontend == "two-servers" else ()))
    words += ("--listen-when-ready",) if listens == "when-ready" else ()
    starting = 503 if listens == "at-once" else 0
    with FakeStart(folder, *words, port=port) as start, RepeatingClients(port, *["/health"] * 8) as clients:
        clients.wait_for_more(200, starting)
        start.wait_logged("EngineCore prints a line")
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        gate.touch()
        start.wait_ready()
        assert start.complete("A text") == "A text was read by worker 0"
        clients.wait_for_more(200, 200)
        start.wait_logged("ready after")
        wait_until(lambda: len(start.responders()) == (frontend == "one-server"))  # answers /health while vLLM serves
    assert not clients.lost
    for statuses in clients.statuses:
        assert statuses == sorted(statuses, key=(0, starting, 200).index)


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
        assert start.ask("/")[0] == 404  # vLLM's own routes, and a few of ours, are left


def test_unix_socket_is_handed_over(folder, model):
    gate = folder / "gate"
    path = folder / "socket"

    def status() -> int | None:
        with suppress(OSError), RawClient(str(path)) as client:
            return client.get("/health").read().status
        return None

    words = (model, "--uds", str(path), "--gate", str(gate))
    with FakeStart(folder, *words, host=None, env=environment(folder, **CHECKED)) as start:
        start.wait(lambda: status() == 503)
        start.wait_logged("EngineCore prints a line")
        gate.touch()
        start.wait(lambda: status() == 200)
        start.wait_logged("ready after")
        assert status() == 200


def test_a_headless_start_opens_no_port_and_has_no_deadline(folder, model):
    words = (model, "--headless", "--startup-timeout", "0.001")
    with FakeStart(folder, *words, env=environment(folder, **CHECKED)) as start:
        start.wait_logged("headless engine")
        assert [c for c in start.root.net_connections("tcp") if c.status == "LISTEN"] == []
        engine = start.named("VLLM::EngineCor")
        assert start.kind_of(engine.pid) == "forkserver"
        assert start.terminate() == 0


def test_several_api_servers_share_the_port_and_the_forkserver(folder, model):
    with FakeStart(folder, model, "--api-server-count", "2", env=environment(folder, **CHECKED)) as start:
        start.wait_ready()
        wait_until(lambda: start.responders() == [])
        (forkserver,) = start.forkservers()
        one = start.state()["server"]
        with stopped(one["pid"]):
            other = start.state()["server"]
        assert {one["name"], other["name"]} == {"ApiServer_0", "ApiServer_1"}
        for server in (one, other):
            assert server["ppid"] == forkserver.pid
            assert server["parent"] == start.process.pid
            assert server["imported_in"]["vllm.entrypoints.launchers.launcher"] == forkserver.pid
        assert start.terminate() == 0
