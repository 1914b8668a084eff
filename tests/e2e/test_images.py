"""A real server with a tiny vision model, used through the `openai` client. Its caches can be reset."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.server_process import ServerProcess
from tests.server.engine.features.tiny_vlm import expected_answer, image_messages, image_url, save_vlm
from tests.support.marks import slow_but_for

_NUM_TOKENS = 12
_EXACT: dict[str, Any] = {
    "model": "tiny",
    "temperature": 0,
    "max_tokens": _NUM_TOKENS,
    "extra_body": {"ignore_eos": True, "return_token_ids": True},
}


@pytest.fixture(scope="module", params=slow_but_for(["smolvlm", "qwen2_vl"], "smolvlm"))
def vlm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vlm(tmp_path_factory.mktemp("vlm"), request.param)


@pytest.fixture(scope="module")
def server(vlm: Path) -> Iterator[ServerProcess]:
    arguments = [str(vlm), "--served-model-name", "tiny", "--dtype", "float32"]
    arguments += ["--limit-mm-per-prompt", '{"image": 2}']
    with ServerProcess(arguments, environment={"VLLM_SERVER_DEV_MODE": "1"}) as server:
        yield server


def test_a_data_url_gives_the_tokens_of_transformers(client, vlm):
    messages = image_messages(image_url(1), image_url(2, 100, 80))
    answer = client.chat.completions.create(messages=messages, **_EXACT)
    assert answer.choices[0].token_ids == expected_answer(vlm, messages, _NUM_TOKENS)  # type: ignore[attr-defined]


def test_caches_are_reset(server: ServerProcess):
    assert server.ask("/reset_prefix_cache", {}).json == {"success": True}
    answer = server.ask("/reset_mm_cache", {})
    assert (answer.status, answer.body) == (200, b"")
    refused = server.ask("/reset_prefix_cache?reset_running_requests=maybe", {})
    assert (refused.status, refused.json["error"]["param"]) == (400, "reset_running_requests")
