"""A model that is not on disk: the launcher downloads it, and vLLM sends no request to the hub."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.server import HubServer
from tests.vllm_engine.vllm_server import VllmServer

pytestmark = pytest.mark.slow


@pytest.fixture
def hub(small_model: Path) -> Iterator[HubServer]:
    with HubServer().serving() as hub:
        hub.add("org/model", small_model)
        yield hub


def test_the_launcher_downloads_and_vllm_sends_no_request(hub, tmp_path, expected_text):
    cache = {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1"}
    environment = {**cache, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
    words = ("--enforce-eager", "--max-model-len", "256", "--dtype", "float32")
    with VllmServer("ours", Path("org/model"), *words, folder=tmp_path, environment=environment) as server:
        assert server.wait_ready().generate() == expected_text
    files = [name for name in hub.downloads if name != "org/model/model.safetensors"]
    assert len(files) == len(set(files)), "nothing is fetched twice"
    hub.reset()
    with VllmServer("ours", Path("org/model"), *words, folder=tmp_path, environment=environment) as server:
        assert server.wait_ready().generate() == expected_text
        (model,) = server.get("/v1/models")["data"]
        assert (model["id"], model["root"]) == ("model", "org/model")
    assert hub.requests == []
