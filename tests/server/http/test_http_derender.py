"""The derender routes make of generated tokens what the chat and completion routes would have answered."""

import json

import pytest

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
GENERATE = "/inference/v1/generate"
MESSAGES = [{"role": "user", "content": "Weather?"}]
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome 🌍"}}\n</tool_call>'
NO_IDS = {"id": None, "created": None}


@pytest.fixture(scope="module")
def _plain(_start):
    with _start(enable_scale_out=True) as server:
        yield server


@pytest.fixture(scope="module")
def _parsing(_start):
    options = {"reasoning_parser": "qwen3", "enable_auto_tool_choice": True, "tool_call_parser": "hermes"}
    with _start(enable_scale_out=True, **options) as server:
        yield server


@pytest.fixture
def plain(_plain, engine):
    """A server with --enable-scale-out."""
    return _plain


@pytest.fixture
def parsing(_parsing, engine):
    """The same with parsers of reasoning and of tool calls."""
    return _parsing


def derender(server, path, **fields):
    return server.post(f"{path}/derender", fields)


def render(server, path, body):
    """The body for /inference/v1/generate."""
    rendered = server.post(f"{path}/render", body).json()
    return rendered[0] if isinstance(rendered, list) else rendered


def derendered_chat(server, body):
    """The chat's answer by way of tokens."""
    rendered = render(server, CHAT, body)
    generated = server.post(GENERATE, rendered).json()
    count = len(rendered["token_ids"])
    given = {"chat_request": body, "prompt_token_ids": rendered["token_ids"], "prompt_tokens": count}
    return derender(server, CHAT, generate_response=generated, **given).json()


def stream_chunks(server, path, body):
    """The chunks of a stream by way of tokens."""
    rendered = render(server, path, body)
    engine_chunks = [json.loads(line) for line in server.stream_lines(GENERATE, rendered)[:-1]]
    kept = {"prompt_token_ids": rendered["token_ids"], "prompt_tokens": len(rendered["token_ids"]), "stream": True}
    kept[f"{'chat' if path == CHAT else 'completion'}_request"] = body
    state, chunks = None, []
    for chunk in engine_chunks:
        answer = derender(server, path, generate_chunk=chunk, stream_state=state, **kept)
        assert answer.status_code == 200, answer.text
        state = answer.json()["stream_state"]
        chunks.append(answer.json()["chunk"])
    return chunks


def joined(chunks):
    """What the deltas of a chat's chunks add up to."""
    whole = {"role": None, "content": "", "reasoning": "", "calls": [], "finish": None, "stop": None, "logprobs": []}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        delta = choice["delta"]
        whole["role"] = delta.get("role") or whole["role"]
        whole["content"] += delta.get("content") or ""
        whole["reasoning"] += delta.get("reasoning") or ""
        whole["finish"] = choice["finish_reason"] or whole["finish"]
        whole["stop"] = choice.get("stop_reason") or whole["stop"]
        whole["logprobs"] += (choice["logprobs"] or {"content": []})["content"]
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                whole["calls"].append([call["function"]["name"], ""])
            whole["calls"][-1][1] += call["function"]["arguments"]
    return whole


def without_ids(response):
    """The response without the random ids and the time."""
    for choice in response["choices"]:
        for call in choice.get("message", {}).get("tool_calls", ()):
            call["id"] = None
    return response | NO_IDS


TEXTS = {
    "plain": (" Paris 🌍, naïve.", {}),
    "stop": (" Paris, the city of light.", {"stop": ["city"]}),
    "kept stop": (" Paris, the city of light.", {"stop": ["city"], "include_stop_str_in_output": True}),
    "length": (" Paris, the city of light.", {"max_tokens": 3}),
    "special": ("<|im_start|> Paris<|im_end|>", {"skip_special_tokens": False}),
    "logprobs": (" Paris 🌍.", {"logprobs": True, "top_logprobs": 2}),
    "no candidates": (" Paris 🌍.", {"logprobs": True}),
    "ids": (" Paris", {"return_token_ids": True, "n": 2}),
}
PARSED = {
    "content": ("<think>\nHm.\n</think>\n\nYes.", {}),
    "call": (f"<think>\nHm.\n</think>\n\nSure. {CALL}", {"tools": [WEATHER]}),
    "two calls": (f"<think>a</think>{CALL}\n{CALL}", {"tools": [WEATHER]}),
    "one call only": (f"<think>a</think>{CALL}\n{CALL}", {"tools": [WEATHER], "parallel_tool_calls": False}),
    "hidden": ("<think>\nHm.\n</think>\n\nYes.", {"include_reasoning": False, "logprobs": True}),
    "unfinished": ("<think>\nHm. I", {"max_tokens": 5}),
    "named": (
        '<think>a</think>{"city": "Rome"}',
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
    ),
}
CASES = [("plain", name) for name in TEXTS] + [("parsing", name) for name in PARSED]


@pytest.fixture(params=CASES, ids=str)
def case(request, plain, parsing, engine, encode):
    """A server and a chat request, to which the engine gives the case's answer."""
    kind, name = request.param
    text, fields = (TEXTS if kind == "plain" else PARSED)[name]
    engine.reply = encode(text)
    return parsing if kind == "parsing" else plain, {"messages": MESSAGES, "max_tokens": 200} | fields


def test_a_derendered_chat_is_that_of_the_chat_route(case):
    server, body = case
    assert without_ids(derendered_chat(server, body)) == without_ids(server.post(CHAT, body).json())


def test_a_chat_derendered_by_chunks_is_that_of_the_chat_route(case, engine):
    server, body = case
    body["n"] = 1
    for size in (1, 3):
        engine.tokens_per_step = size
        wanted = [json.loads(line) for line in server.stream_lines(CHAT, body)[:-1]]
        assert joined(stream_chunks(server, CHAT, body)) == joined(wanted)


@pytest.mark.parametrize(
    "fields", [{}, {"logprobs": 2}, {"stop": [" city"]}, {"return_token_ids": True}, {"max_tokens": 3}], ids=str
)
def test_a_derendered_completion_is_that_of_the_completion_route(plain, fields):
    body = {"prompt": ["a b", "c"], "max_tokens": 50, "n": 2} | fields
    wanted = plain.post(COMPLETION, body).json()
    rendered = plain.post(f"{COMPLETION}/render", body).json()
    prompts = [each["token_ids"] for each in rendered]
    found = derender(
        plain,
        COMPLETION,
        generate_responses=[plain.post(GENERATE, each).json() for each in rendered],
        prompt_tokens=[len(prompt) for prompt in prompts],
        prompt_token_ids=prompts,
        completion_request=body,
    ).json()
    assert found | NO_IDS == wanted | NO_IDS
    body |= {"prompt": "a b", "n": 1}
    wanted = [json.loads(line) for line in plain.stream_lines(COMPLETION, body)[:-1]]
    chunks = stream_chunks(plain, COMPLETION, body)
    assert [chunk | NO_IDS for chunk in chunks] == [chunk | NO_IDS for chunk in wanted]


def test_tokens_without_their_request_become_text(plain, encode):
    choice = {"index": 3, "token_ids": encode("Hello"), "stop_reason": "\n\n"}
    generated = {"request_id": "r", "choices": [choice], "prompt_logprobs": [None], "kv_transfer_params": {"a": 1}}
    chat = derender(plain, CHAT, generate_response=generated, prompt_tokens=5).json()
    assert (chat["id"], chat["usage"]["total_tokens"]) == ("r", 5 + len(choice["token_ids"]))
    (found,) = chat["choices"]
    assert (found["index"], found["message"]["content"], found["stop_reason"]) == (3, "Hello", "\n\n")
    assert (chat["prompt_logprobs"], chat["kv_transfer_params"]) == ([None], {"a": 1})
    completion = derender(plain, COMPLETION, generate_responses=[generated]).json()
    assert completion["choices"][0]["text"] == "Hello"


def test_long_outputs_are_read_in_several_turns(parsing, engine, encode):
    engine.reply = encode("<think>" + "Hm. " * 90 + "</think>" + "é🌍 " * 40)
    body = {"messages": MESSAGES, "max_tokens": 450}
    wanted = parsing.post(CHAT, body).json()
    assert wanted["usage"]["completion_tokens"] > 300
    assert derendered_chat(parsing, body) | NO_IDS == wanted | NO_IDS
    rendered = render(parsing, CHAT, body)
    chunk = {"choices": [{"index": 0, "token_ids": encode(" End"), "finish_reason": "stop"}]}
    state = {"output_token_ids": engine.reply[:450], "role_sent": True}
    fields = {"chat_request": body, "prompt_token_ids": rendered["token_ids"][-9:]}
    answer = derender(parsing, CHAT, stream=True, generate_chunk=chunk, stream_state=state, **fields).json()
    assert answer["chunk"]["choices"][0]["delta"]["content"].endswith(" End")


def test_the_last_chunk_may_be_usage_only(plain):
    usage = {"prompt_tokens": 1, "completion_tokens": 4}
    for path in (CHAT, COMPLETION):
        answer = derender(plain, path, stream=True, generate_chunk={"choices": [], "usage": usage}, prompt_tokens=3)
        chunk = answer.json()["chunk"]
        assert (chunk["choices"], chunk["usage"]["total_tokens"]) == ([], 7)
        assert answer.json()["stream_state"]["role_sent"] is False


def test_an_aborted_output_keeps_its_reason(parsing, encode):
    choice = {"index": 0, "token_ids": encode("<think>a</think>Hello"), "finish_reason": "abort"}
    fields = {"generate_response": {"choices": [choice]}, "chat_request": {"messages": MESSAGES}}
    (found,) = derender(parsing, CHAT, **fields).json()["choices"]
    assert (found["finish_reason"], found["message"]["content"]) == ("abort", "Hello")


def generated(**fields):
    return {"choices": [{"index": 0, "token_ids": [5]} | fields]}


def entries(count, **fields):
    return {"content": [{"token_id": 5, "logprob": -1.0} | fields] * count}


CANDIDATES = [{"token_id": 5, "logprob": -1.0}] * 21
STREAM = {"stream": True, "generate_chunk": generated()}
STATE = {"output_token_ids": [5] * 510}


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {}, "generate_response"),
        (CHAT, {"generate_response": {"choices": []}}, "choices"),
        (CHAT, {"generate_response": generated(), "model": "other"}, "model"),
        (CHAT, {"generate_response": generated() | {"output_mode": "text"}}, "generate_response.output_mode"),
        (CHAT, {"generate_response": generated(token_ids=None)}, "token_ids"),
        (CHAT, {"generate_response": generated(token_ids=[49152])}, "token_ids"),
        (CHAT, {"generate_response": generated(token_ids=[5] * 513)}, "token_ids"),
        (CHAT, {"generate_response": generated(logprobs=entries(513))}, "logprobs.content"),
        (CHAT, {"generate_response": generated(logprobs=entries(1, top_logprobs=CANDIDATES))}, "top_logprobs"),
        (CHAT, {"generate_response": generated(logprobs=entries(1, token_id=49152))}, "logprobs"),
        (CHAT, {"generate_response": generated() | {"prompt_logprobs": [None] * 513}}, "prompt_logprobs"),
        (CHAT, {"generate_response": generated(), "prompt_token_ids": [5] * 513}, "prompt_token_ids"),
        (CHAT, {"generate_response": {"choices": generated()["choices"] * 16_385}}, "choices"),
        (CHAT, {"generate_chunk": generated(), "generate_response": generated()}, "generate_chunk"),
        (CHAT, {"stream": True, "generate_response": generated()}, "generate_chunk"),
        (CHAT, STREAM | {"generate_chunk": {"choices": generated()["choices"] * 2}}, "generate_chunk"),
        (CHAT, STREAM | {"stream_state": STATE, "prompt_token_ids": [5, 6]}, "stream_state"),
        (CHAT, STREAM | {"stream_state": {"output_token_ids": [49152]}}, "output_token_ids"),
        (COMPLETION, {"generate_responses": []}, "generate_responses"),
        (COMPLETION, {"generate_responses": [generated()] * 16_385}, "generate_responses"),
        (COMPLETION, {"generate_responses": [generated()], "prompt_tokens": [1, 2]}, "prompt_tokens"),
        (COMPLETION, {"generate_responses": [generated()], "prompt_tokens": 1}, "prompt_tokens"),
        (COMPLETION, {"generate_responses": [generated()], "prompt_token_ids": [[1], [2]]}, "prompt_token_ids"),
        (COMPLETION, {"generate_responses": [generated()], "prompt_token_ids": [1]}, "prompt_token_ids"),
        (COMPLETION, STREAM | {"prompt_token_ids": [[1]]}, "prompt_token_ids"),
        (COMPLETION, STREAM | {"prompt_tokens": [1]}, "prompt_tokens"),
        (COMPLETION, STREAM | {"stream_state": STATE | {"output_token_ids": [5] * 512}}, "stream_state"),
    ],
)
def test_bad_requests_are_rejected(plain, path, fields, param):
    response = derender(plain, path, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (404 if param == "model" else 400, param)


def test_parsers_need_the_request_and_the_prompt(parsing):
    missing = derender(parsing, CHAT, generate_response=generated())
    assert (missing.status_code, missing.json()["error"]["param"]) == (400, "chat_request")
    missing = derender(parsing, CHAT, **STREAM, chat_request={"messages": MESSAGES})
    assert (missing.status_code, missing.json()["error"]["param"]) == (400, "prompt_token_ids")
    assert derender(parsing, COMPLETION, generate_responses=[generated()]).status_code == 200


def test_the_routes_exist_and_are_described_only_with_the_flag(server, plain):
    for path in (CHAT, COMPLETION):
        assert derender(server, path).status_code == 404
        for each in (server, plain):
            assert (f"{path}/derender" in each.get("/openapi.json").json()["paths"]) is (each is plain)


def test_a_rendered_response_is_the_prompt_of_its_chat(plain, engine):
    rendered = plain.post("/v1/responses/render", {"input": "Weather?", "max_output_tokens": 4}).json()
    chat = plain.post(f"{CHAT}/render", {"messages": MESSAGES, "max_tokens": 4}).json()
    assert rendered["token_ids"] == chat["token_ids"]
    assert rendered["sampling_params"] == chat["sampling_params"]
    assert rendered["request_id"].startswith("resp_")
    assert not engine.requests


def test_rendered_prompts_have_the_places_of_their_tokens(plain):
    text = "The quick brown fox jumps over the lazy dog."
    fields = {"prompt": [text, "Hello"], "return_token_offsets": True}
    whole, short = plain.post(f"{COMPLETION}/render", fields).json()
    assert (whole["token_offsets"][0][0], whole["token_offsets"][-1][1]) == (0, len(text))
    assert len(whole["token_offsets"]) == len(whole["token_ids"])
    assert short["token_offsets"][-1][1] == len("Hello")
    [end] = plain.post(f"{COMPLETION}/render", fields | {"prompt": text, "truncate_prompt_tokens": 3}).json()
    assert end["token_offsets"] == whole["token_offsets"][-3:]
    chat = plain.post(f"{CHAT}/render", {"messages": MESSAGES, "return_token_offsets": True}).json()
    assert len(chat["token_offsets"]) == len(chat["token_ids"])
    ids = {"prompt": [1, 2], "return_token_offsets": True}
    assert plain.post(f"{COMPLETION}/render", ids).json()[0]["token_offsets"] is None


def test_metrics_of_the_generation_are_passed_on(plain):
    metrics = derender(plain, CHAT, generate_response=generated() | {"metrics": {"tokens_per_second": 2}}).json()[
        "metrics"
    ]
    assert metrics.pop("tokens_per_second") == 2
    assert metrics == dict.fromkeys(
        ("time_to_first_token_ms", "generation_time_ms", "queue_time_ms", "mean_itl_ms", "speculative_decoding")
    )


def test_a_response_that_continues_another_is_not_rendered(plain):
    answer = plain.post("/v1/responses/render", {"input": "Weather?", "previous_response_id": "resp_1"})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", "previous_response_id")
