"""The router shows that a model hangs, and ends it, so that other models get its room."""

import signal
import threading

import aiohttp
import psutil
import pytest
from aiohttp import web

from router.child.server import OwnServer
from tests.router.router_process import RouterProcess, embedded
from tests.support.http_client import ask
from tests.support.waiting import wait_until

pytestmark = pytest.mark.thorough


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
    words = ("--max-running", "1", "--max-wait", "5", "--standby", "off")
    statuses: list[int] = []
    with RouterProcess(tmp_path, models, *words) as router:
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
