"""Chats with images over HTTP, for a vision model and for a text model."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server.terms.config import ModelFiles, RendererConfig
from server.text.renderers.renderer import Renderer
from tests.server.engine.features.tiny_vlm import image_messages, image_url, save_vlm

MAX_MODEL_LEN = 512


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vlm(tmp_path_factory.mktemp("vlm"), "qwen2_vl")


@pytest.fixture(scope="module")
def vision_renderer(vlm: Path) -> Iterator[Renderer]:
    config = RendererConfig(limit_mm_per_prompt={"image": 3}, num_workers=1)
    with Renderer(ModelFiles(vlm, vlm), config) as renderer:
        renderer.prompts.max_model_len = MAX_MODEL_LEN
        renderer.warm_up()
        renderer.pools.text.submit(int).result()  # starts the thread, which stays until the server ends
        yield renderer


@pytest.fixture
def vision(serve: Callable[..., Any], vision_renderer: Renderer, engine: Any) -> Any:
    """A server of a vision model with a scripted engine."""
    engine.reset(vision_renderer.tokenizer.encode("a cat", add_special_tokens=False))
    return serve(renderer=vision_renderer)


def test_an_image_reaches_the_engine_with_its_tokens(vision):
    with vision.client() as client:
        answer = client.chat.completions.create(model="smol", messages=image_messages(image_url(0)))
    assert answer.choices[0].message.content == "a cat"
    ((token_ids, _),) = vision.engine.requests.values()
    (inputs,) = vision.engine.inputs.values()
    assert set(inputs.mm) == {"pixel_values", "image_grid_thw", "mm_token_type_ids"}
    assert inputs.mm["mm_token_type_ids"].shape == (1, len(token_ids))
    assert answer.usage.prompt_tokens == len(token_ids)
    found = vision.post("/tokenize", {"messages": image_messages(image_url(0))}).json()
    assert (found["tokens"], found["count"]) == (token_ids, len(token_ids))


_BLOCK = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": image_url(0).partition(",")[2]},
}
_CALL = {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "look", "input": {}}]}
_RESULT = {"type": "tool_result", "tool_use_id": "a", "content": [_BLOCK]}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages", {"messages": [{"role": "user", "content": [_BLOCK]}], "max_tokens": 100}),
        ("/v1/messages", {"messages": [_CALL, {"role": "user", "content": [_RESULT]}], "max_tokens": 100}),
        (
            "/v1/responses",
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": image_url(0)}]}]},
        ),
    ],
    ids=["message", "tool result", "response"],
)
def test_an_image_of_another_api_is_that_of_a_chat(vision, path, body):
    answer = vision.post(path, {"model": "smol"} | body).json()
    vision.chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": image_url(0)}}]}])
    one, other = vision.engine.inputs.values()
    assert one.mm["pixel_values"].data == other.mm["pixel_values"].data
    if path == "/v1/messages":
        counted = vision.post("/v1/messages/count_tokens", {"model": "smol", "messages": body["messages"]}).json()
        assert counted["input_tokens"] == answer["usage"]["input_tokens"]


def test_the_image_cache_has_metrics(vision):
    for _ in range(2):
        vision.chat(messages=image_messages(image_url(77)))
    metrics = vision.get("/metrics").text
    values = {
        line.split("{")[0]: float(line.rsplit(" ", 1)[1])
        for line in metrics.splitlines()
        if "mm_cache" in line and line[0] != "#"
    }
    assert values["vllm:mm_cache_queries_total"] > values["vllm:mm_cache_hits_total"] >= 1
    assert values["vllm_cli:mm_cache_bytes"] > 0
