"""Real servers with tiny vision models, used through the `openai` client."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.e2e.server_process import ServerProcess
from tests.server.engine.features.tiny_vlm import as_bytes, image, save_vlm
from tests.server.engine.features.vlm_reference import expected_answer, image_messages, image_url
from tests.tiers import slow_but_for

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
def server(vlm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("media")
    (folder / "cat.png").write_bytes(as_bytes(image(seed=4)))
    arguments = [str(vlm), "--served-model-name", "tiny", "--dtype", "float32", "--max-num-seqs", "16"]
    arguments += ["--allowed-local-media-path", str(folder), "--limit-mm-per-prompt", '{"image": 2}']
    with ServerProcess(arguments) as server:
        server.folder = folder  # type: ignore[attr-defined]
        yield server


def test_a_data_url_gives_the_tokens_of_transformers(client, vlm):
    messages = image_messages(image_url(1), image_url(2, 100, 80))
    answer = client.chat.completions.create(messages=messages, **_EXACT)
    assert answer.choices[0].token_ids == expected_answer(vlm, messages, _NUM_TOKENS)  # type: ignore[attr-defined]


def test_a_local_file_gives_the_same_text_as_its_data_url(client, server):
    by_file = f"file://{server.folder}/cat.png"  # type: ignore[attr-defined]
    by_data = image_url(4, 56, 56)
    texts = [
        client.chat.completions.create(messages=image_messages(url), **_EXACT).choices[0].message.content
        for url in (by_file, by_data)
    ]
    assert texts[0] == texts[1]


def test_thirty_two_concurrent_images_give_the_text_of_each_alone(server, client):
    conversations = [image_messages(image_url(seed)) for seed in range(4)]
    alone = [
        client.chat.completions.create(messages=messages, **_EXACT).choices[0].message.content
        for messages in conversations
    ]

    async def run() -> list[str | None]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as aclient:
            answers = await asyncio.gather(
                *(aclient.chat.completions.create(messages=conversations[i % 4], **_EXACT) for i in range(32))
            )
        return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(run()) == [alone[i % 4] for i in range(32)]
    assert len(set(alone)) > 1
    assert server.metric("vllm:mm_cache_hits_total") >= 32
    assert server.metric("vllm:num_requests_running") == 0
