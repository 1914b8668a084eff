"""The routes that only some of our servers have: an engine alone, a router, and a router with one model.

A router with one model answers in each state of the model as one with several models does. Only /readyz?model
reports the model itself, and only the embedded engine has a page and facts of its own.
"""

from pathlib import Path
from typing import Final

import pytest

from router.http.router_answers import RouterAnswers
from tests.e2e.server_process import ServerProcess
from tests.router.router_process import RouterProcess
from tests.startup.vllm.fake_start import environment
from tests.support.folders import short_folder

pytestmark = pytest.mark.thorough

_TABLE: Final = """
path                          embedded vllm several one stopped asleep
GET /                         200      404  200     200 200     200
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
    words = ["fake", "--engine", "vllm", "--served-model-name", "m", *_FLAGS]
    more = {"vllm": [], "asleep": ["--idle-sleep", "1s"]}.get(kind, ["--idle-stop", "600s"])
    quiet = [] if kind == "vllm" else ["--standby", "off"]
    return [*words, *more, *quiet], environment(folder, **_SMALL)


def _start(kind: str, folder: Path, tiny_llama: Path) -> ServerProcess:
    words, variables = _words(kind, folder, tiny_llama)
    if kind != "several":
        return ServerProcess(words, environment=variables)
    entry = {"model": "fake", "engine": "vllm", "args": _FLAGS}
    return RouterProcess(
        folder, {"m": entry, "other": entry}, "--standby", "off", environment=environment(folder, **_SMALL)
    )


def _bring(server: ServerProcess, kind: str) -> None:
    """Brings the model into the state of the kind."""
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
