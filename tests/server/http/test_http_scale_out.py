"""/inference/v1/generate and the render routes, with --enable-scale-out."""

import json
import threading

import httpx
import pytest

from tests.server.http.conftest import MODEL, PATIENT_S

GENERATE = "/inference/v1/generate"
MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def _shared(_start):
    with _start(enable_scale_out=True) as server:
        yield server


@pytest.fixture
def scaled(_shared, engine):
    """The server with --enable-scale-out that the tests of this module share."""
    return _shared


def generate(server, sampling=None, **fields):
    body = {"token_ids": [5, 6, 7], "sampling_params": sampling or {}}
    return server.post(GENERATE, body | fields)


def test_routes_exist_only_with_the_flag(server):
    assert generate(server).status_code == 404
    assert server.post("/v1/chat/completions/render", {"messages": MESSAGES}).status_code == 404


def test_tokens_come_back_as_tokens(scaled, engine, encode):
    body = generate(scaled, request_id="a", return_token_ids=True).json()
    assert body["request_id"] == "generate-tokens-a"
    assert (body["output_mode"], body["prompt_token_ids"]) == ("tokens", [5, 6, 7])
    (choice,) = body["choices"]
    assert choice["token_ids"][:-1] == encode(" Paris, the city of light.")
    assert choice["finish_reason"] == "stop"
    assert "text" not in choice
    ((prompt, params),) = engine.requests.values()
    assert (prompt, params.max_tokens) == ([5, 6, 7], 512 - 3)


def test_text_is_returned_on_request(scaled):
    (choice,) = generate(scaled, {"stop": [" city"]}, output_mode="text").json()["choices"]
    assert (choice["text"], choice["stop_reason"]) == (" Paris, the", " city")


def test_parameters_reach_the_engine(scaled, engine):
    sampling = {"n": 2, "temperature": 0.5, "top_k": 3, "max_tokens": 4, "seed": 1, "logit_bias": {"5": 2.5}}
    assert len(generate(scaled, sampling).json()["choices"]) == 2
    for _, params in engine.requests.values():
        assert (params.temperature, params.top_k, params.max_tokens, params.logit_bias) == (0.5, 3, 4, {5: 2.5})


@pytest.mark.parametrize("most", [0, 1, 2])
def test_logprobs_have_token_ids_with_the_sampled_one_first(scaled, most):
    (choice,) = generate(scaled, {"logprobs": most, "max_tokens": 2}).json()["choices"]
    assert len(choice["logprobs"]["content"]) == 2
    for token_id, entry in zip(choice["token_ids"], choice["logprobs"]["content"], strict=True):
        assert entry["token_id"] == entry["top_logprobs"][0]["token_id"] == token_id
        assert len(entry["top_logprobs"]) == max(1, most)


def test_stream_adds_up_to_the_response(scaled):
    whole = generate(scaled, output_mode="text").json()["choices"][0]
    body = {"token_ids": [5, 6, 7], "sampling_params": {}, "output_mode": "text", "return_token_ids": True}
    *chunks, done = scaled.stream_lines(GENERATE, body | {"stream_options": {"include_usage": True}})
    *chunks, last = map(json.loads, chunks)
    assert done == "[DONE]"
    assert (last["choices"], last["usage"]["prompt_tokens"]) == ([], 3)
    assert [chunk.get("prompt_token_ids") for chunk in chunks] == [[5, 6, 7]] + [None] * (len(chunks) - 1)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"]
    assert [i for chunk in chunks for i in chunk["choices"][0]["token_ids"]] == whole["token_ids"]


def test_an_aborted_stream_ends_with_its_reason(scaled, engine, wait_until):
    engine.holds_after = 2
    body = {"token_ids": [5], "sampling_params": {}, "stream": True, "request_id": "x"}
    events: list[dict] = []

    def read() -> None:
        with httpx.stream("POST", scaled.url + GENERATE, json=body, timeout=PATIENT_S, trust_env=False) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    events.append(json.loads(line.removeprefix("data: ")))

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: events)
    with httpx.stream("POST", scaled.url + GENERATE, json=body, timeout=PATIENT_S, trust_env=False) as other:
        next(other.iter_lines())  # a second stream with the id, which ends first
    wait_until(lambda: engine.aborted)
    aborted = scaled.post("/inference/v1/abort_requests", {"request_ids": [events[0]["request_id"], "unknown"]})
    assert (aborted.status_code, aborted.content) == (200, b"")
    engine.holds_after = None
    reader.join(PATIENT_S)
    assert events[-1]["choices"][0]["finish_reason"] == "abort"
    assert len(events) < 8
    wait_until(lambda: len(engine.aborted) == 2)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"token_ids": []}, "token_ids"),
        ({"token_ids": [-1]}, "token_ids"),
        ({"token_ids": [49152]}, "prompt"),
        ({"token_ids": [5] * 512}, "input_tokens"),
        ({"output_mode": "derender"}, "output_mode"),
        ({"sampling_params": {"detokenize": False}, "output_mode": "text"}, "output_mode"),
        ({"sampling_params": {"detokenize": False, "stop": ["a"]}}, "sampling_params.stop"),
        ({"sampling_params": {"temperature": 9}}, "sampling_params"),
        ({"sampling_params": {"min_tokens": 2**31 - 1}}, "min_tokens"),
        ({"sampling_params": {"n": 16_385}}, "n"),
        ({"sampling_params": {"stop": ["a"] * 65}}, "stop"),
        ({"sampling_params": None}, "sampling_params"),
        ({"features": {"mm_hashes": {"image": ["a"]}}}, "features"),
        ({"model": "other"}, "model"),
    ],
    ids=str,
)
def test_bad_requests_are_rejected(scaled, engine, fields, param):
    response = generate(scaled, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (404 if param == "model" else 400, param)
    assert not engine.requests


def test_a_rendered_chat_generates_what_the_chat_does(scaled, engine):
    body = {"messages": MESSAGES, "temperature": 0.3, "max_tokens": 4, "stop": ["x"], "logprobs": True}
    body |= {"structured_outputs": {"regex": "a+"}, "request_id": "r", "n": 2, "bad_words": [" bad"], "seed": 3}
    chat = scaled.post("/v1/chat/completions", body).json()
    rendered = scaled.post("/v1/chat/completions/render", body).json()
    assert rendered["request_id"] == "chatcmpl-r"
    answer = scaled.post(GENERATE, rendered | {"output_mode": "text"}).json()
    assert [c["text"] for c in answer["choices"]] == [c["message"]["content"] for c in chat["choices"]]
    first, second = [list(engine.requests.values())[i : i + 2] for i in (0, 2)]
    assert sorted(first, key=str) == sorted(second, key=str)


def test_rendered_completions_are_a_list(scaled, engine):
    rendered = scaled.post("/v1/completions/render", {"prompt": ["a b", "c"], "request_id": "r"}).json()
    assert [each["request_id"] for each in rendered] == ["cmpl-r-0", "cmpl-r-1"]
    assert all(each["token_ids"] and each["sampling_params"]["max_tokens"] == 16 for each in rendered)
    assert not engine.requests


def test_a_rendered_message_is_the_prompt_of_its_chat(scaled, engine):
    system, message = {"role": "system", "content": "Be short."}, MESSAGES[0]
    body = {"model": MODEL, "max_tokens": 4, "system": "Be short.", "messages": [message]}
    rendered = scaled.post("/v1/messages/render", body).json()
    chat = scaled.post("/v1/chat/completions/render", {"max_tokens": 4, "messages": [system, message]}).json()
    assert rendered["token_ids"] == chat["token_ids"]
    assert rendered["sampling_params"] == chat["sampling_params"]
    assert scaled.post("/v1/messages/render", body | {"model": "other"}).status_code == 404


def test_a_server_for_tokens_only_gives_no_text(serve, engine):
    server = serve(tokens_only=True)
    assert generate(server).status_code == 200
    assert server.post("/abort_requests", {"request_ids": ["x"]}).status_code == 200
    assert "stop strings" in generate(server, {"stop": ["a"]}).json()["error"]["message"]
    assert "requires a tokenizer" in generate(server, output_mode="text").json()["error"]["message"]


def test_rendered_chats_tell_whether_their_reasoning_is_over(serve, engine):
    server = serve(enable_scale_out=True, reasoning_parser="deepseek_v3")
    body = {"messages": MESSAGES, "structured_outputs": {"regex": "a+"}, "max_tokens": 4}
    body |= {"chat_template_kwargs": {"enable_thinking": True}}
    rendered = server.post("/v1/chat/completions/render", body).json()
    assert rendered["reasoning_ended"] is False
    assert rendered["reasoning_parser_kwargs"]["chat_template_kwargs"]["enable_thinking"] is True
    server.post("/v1/chat/completions", body)
    server.post(GENERATE, rendered)
    (_, chat), (_, tokens) = engine.requests.values()
    assert chat.reasoning is not None
    assert tokens.reasoning == chat.reasoning
    hidden = server.post("/v1/chat/completions/render", body | {"include_reasoning": False}).json()
    assert hidden["reasoning_ended"] is True
    engine.requests.clear()
    server.post(GENERATE, hidden)
    assert [params.reasoning for _, params in engine.requests.values()] == [None]
