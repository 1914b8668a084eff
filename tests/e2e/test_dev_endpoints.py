"""The endpoints for development: caches are reset, settings are shown without secrets."""

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import StartServer
from tests.e2e.server_process import ServerProcess
from tests.http_answer import Answer, ask

_DEV = {"VLLM_SERVER_DEV_MODE": "1"}


@pytest.fixture(scope="module")
def dev_server(start_server: StartServer) -> Iterator[ServerProcess]:
    with start_server("--max-model-len", "512", environment=_DEV) as running:
        yield running


def _post(server: ServerProcess, path: str) -> Answer:
    return ask(f"{server.url}{path}", {})


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


def test_unknown_values_name_the_parameter(dev_server: ServerProcess) -> None:
    answer = _post(dev_server, "/reset_prefix_cache?reset_running_requests=maybe")
    assert answer.status == 400
    assert answer.json["error"]["param"] == "reset_running_requests"


def test_there_are_no_sleep_levels(dev_server: ServerProcess) -> None:
    assert _post(dev_server, "/sleep").status == 404
    assert ask(f"{dev_server.url}/is_sleeping").status == 404
    assert dev_server.metric("vllm:engine_sleep_state", sleep_state="awake") == 1


def test_without_the_variable_there_are_no_such_endpoints(server: ServerProcess) -> None:
    assert _post(server, "/reset_prefix_cache").status == 404
    assert ask(f"{server.url}/server_info").status == 404
