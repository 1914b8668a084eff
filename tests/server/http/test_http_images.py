"""Chats with images, and texts that tests/conversations cannot have: log lines, model files, real clients."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from server.terms.config import ModelFiles, RendererConfig
from server.terms.types import EngineOutput
from server.text.renderers.renderer import Renderer
from tests.server.engine.features.tiny_vlm import image_messages, image_url, save_vlm
from tests.server.generation.conftest import TIME
from tests.server.http.conftest import MESSAGES, MODEL

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


def test_a_stop_string_ends_the_sequence_in_the_engine(server, engine):
    assert server.complete(stop=" city").json()["usage"]["completion_tokens"] == 4
    assert len(engine.aborted) == 1


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", {"messages": MESSAGES})]
)
def test_end_without_a_new_token_is_reported(server, engine, path, body, monkeypatch):
    async def generate(request_id, prompts, num_choices):
        yield EngineOutput(request_id=f"{request_id}-0", token_ids=engine.reply[:1])
        yield EngineOutput(request_id=f"{request_id}-0", finish_reason="length")

    monkeypatch.setattr(engine, "generate", generate, raising=True)
    answer = server.post(path, body).json()
    assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 1)
    assert server.stream(path, body)[-1]["choices"][0]["finish_reason"] == "length"


def test_a_model_with_a_format_of_its_own_needs_no_parser(serve, renderer, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "gpt_oss"}')
    monkeypatch.setattr(renderer, "files", ModelFiles(tmp_path, tmp_path))
    choice = serve(generation_config="vllm").chat(tools=[TIME], tool_choice="auto").json()["choices"][0]
    assert choice["message"]["content"] == " Paris, the city of light."


@pytest.mark.parametrize(
    ("template", "reply", "line"),
    [
        (
            "[TOOL_CALLS]",
            "[TOOL_CALLS]get_time[ARGS]%s",
            "--tool-call-parser auto: mistral, by the model's chat template",
        ),
        (None, '<tool_call>{"name": "get_time", "arguments": %s}</tool_call>', "so hermes is used"),
    ],
)
def test_the_format_is_told_from_the_model_or_a_usual_one(
    serve, engine, encode, monkeypatch, caplog, template, reply, line
):
    engine.reply = encode(reply % '{"zone": "UTC"}')
    if template is not None:
        monkeypatch.setattr(Renderer, "tool_template", template)
    with caplog.at_level("INFO"):
        server = serve(enable_auto_tool_choice=True, tool_call_parser="auto")
    assert line in caplog.text
    (call,) = server.chat(tools=[TIME]).json()["choices"][0]["message"]["tool_calls"]
    assert call["function"] == {"name": "get_time", "arguments": '{"zone": "UTC"}'}


CLIENTS_FIELDS = {
    "messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]}],
    "client_metadata": {"a": "b"},
    "chat_id": "c",
    "session_id": "s",
    "id": "i",
    "background_tasks": {"title_generation": True},
    "features": {"web_search": False},
    "model_item": {"id": "smol"},
    "tool_servers": [],
    "variables": {"{{USER_NAME}}": "me"},
    "functions": [],
    "function_call": "none",
}
"""Fields that Claude Code, Codex and Open WebUI send."""


def test_fields_that_clients_send_anyway_are_not_logged(server, caplog):
    assert server.chat(**CLIENTS_FIELDS).status_code == 200
    body = {"input": "a"} | {name: CLIENTS_FIELDS[name] for name in ("client_metadata", "session_id")}
    assert server.post("/v1/responses", body).status_code == 200
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_openais_client_raises_a_wrong_key_and_an_error_in_mid_stream(serve, engine):
    server = serve(api_keys=("right",))
    with server.client(api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    engine.fails_after = 3
    with server.client(api_key="right") as client:
        assert client.models.list().data
        with pytest.raises(openai.APIError, match="the grammar became too large"):
            list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))
