"""The endpoints for development: a sleeping server gives its memory back and answers after waking up."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.conftest import StartServer
from tests.e2e.process_tree import wait_process
from tests.e2e.server_process import ServerProcess
from tests.http_answer import Answer, ask
from tests.waiting import wait_until

_WEIGHTS_MIB = 256
"""Of SmolLM2-135M in bfloat16."""
_MOST_LEFT = 0.2
"""Share of the weights that may stay in memory, in allocators and libraries."""
_DEV = {"VLLM_SERVER_DEV_MODE": "1"}


@pytest.fixture(scope="module")
def dev_server(start_server: StartServer) -> Iterator[ServerProcess]:
    with start_server("--enable-sleep-mode", "--max-model-len", "512", environment=_DEV) as running:
        yield running


def _post(server: ServerProcess, path: str) -> Answer:
    return ask(f"{server.url}{path}", {})


def _complete(server: ServerProcess) -> str:
    body = {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
    answer = ask(f"{server.url}/v1/completions", body)
    assert answer.status == 200, answer.body
    return str(answer.json["choices"][0]["text"])


def _is_sleeping(server: ServerProcess) -> Any:
    return ask(f"{server.url}/is_sleeping").json


def _resident_mib(server: ServerProcess) -> float:
    return wait_process(server, "engine").memory_info().rss / (1 << 20)


@pytest.mark.parametrize("level", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_a_sleeping_server_frees_its_weights(dev_server: ServerProcess, level: int) -> None:
    text = _complete(dev_server)
    awake_mib = _resident_mib(dev_server)
    slept = _post(dev_server, f"/sleep?level={level}")
    assert (slept.status, slept.json) == (200, {"status": "sleeping", "level": level})
    assert _is_sleeping(dev_server) == {"is_sleeping": True}
    assert awake_mib - _resident_mib(dev_server) > (1 - _MOST_LEFT) * _WEIGHTS_MIB
    state = {1: "weights_offloaded", 2: "discard_all"}[level]
    assert dev_server.metric("vllm:engine_sleep_state", sleep_state=state) == 1
    assert dev_server.metric("vllm:engine_sleep_state", sleep_state="awake") == 0
    assert dev_server.health() == 200
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(_complete, dev_server)
        dev_server.wait_load(1)
        assert _post(dev_server, "/wake_up?tags=weights").json == {"status": "sleeping", "tags": ["weights"]}
        assert not waiting.done()
        assert _post(dev_server, "/wake_up").json == {"status": "awake", "tags": None}
        assert waiting.result() == text
    assert _is_sleeping(dev_server) == {"is_sleeping": False}
    assert dev_server.metric("vllm:engine_sleep_state", sleep_state="awake") == 1


def test_caches_are_reset(dev_server: ServerProcess) -> None:
    assert _post(dev_server, "/reset_prefix_cache").json == {"success": True}
    for path in ("/reset_mm_cache", "/reset_encoder_cache"):
        answer = _post(dev_server, path)
        assert (answer.status, answer.body) == (200, b"")


def test_server_info_has_no_secrets(dev_server: ServerProcess) -> None:
    as_text = ask(f"{dev_server.url}/server_info").json
    as_json = ask(f"{dev_server.url}/server_info?config_format=json").json
    assert isinstance(as_text["vllm_config"], str)
    assert as_json["vllm_config"]["engine"]["max_model_len"] == 512
    assert "api_keys" not in as_json["vllm_config"]
    assert as_json["vllm_env"]["VLLM_SERVER_DEV_MODE"] is True
    assert "VLLM_API_KEY" not in as_json["vllm_env"]


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/sleep?level=3", "level"),
        ("/sleep?level=x", "level"),
        ("/sleep?mode=doze", "mode"),
        ("/wake_up?tags=weights&tags=legs", "tags"),
        ("/reset_prefix_cache?reset_running_requests=maybe", "reset_running_requests"),
    ],
)
def test_unknown_values_name_the_parameter(dev_server: ServerProcess, path: str, param: str) -> None:
    answer = _post(dev_server, path)
    assert answer.status == 400
    assert answer.json["error"]["param"] == param


@pytest.mark.thorough
def test_an_engine_that_dies_asleep_is_restarted_awake(start_server: StartServer) -> None:
    with start_server("--enable-sleep-mode", "--engine-restarts", "1", environment=_DEV) as server:
        assert _post(server, "/sleep").status == 200
        wait_process(server, "engine").kill()
        server.wait_unready()
        wait_until(lambda: server.health() == 200)
        assert _is_sleeping(server) == {"is_sleeping": False}
        assert _complete(server)


@pytest.mark.thorough
def test_without_the_variable_there_are_no_such_endpoints(server: ServerProcess) -> None:
    assert _post(server, "/sleep").status == 404
    assert ask(f"{server.url}/is_sleeping").status == 404
