"""POST /v1/completions, whole and as a stream."""

import pytest

from tests.server.http.conftest import MESSAGES, PROMPT, TEXT


def test_response_has_vllms_fields(server):
    body = server.complete(model="smol", request_id="abc").json()
    assert body["id"] == "cmpl-abc"
    assert body["object"] == "text_completion"
    assert body["model"] == "smol"
    assert body["choices"] == [
        {
            "index": 0,
            "text": TEXT,
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
            "token_ids": None,
            "prompt_logprobs": None,
            "prompt_token_ids": None,
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 8,
        "total_tokens": 13,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }


def test_stream_carries_the_same_text(server):
    chunks = server.stream_completion()
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == TEXT
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 7 + ["stop"]
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    assert all(chunk["object"] == "text_completion" and "usage" not in chunk for chunk in chunks)


def test_output_ends_at_the_limit(server):
    body = server.complete(max_tokens=2).json()
    assert (body["choices"][0]["text"], body["choices"][0]["finish_reason"]) == (" Paris,", "length")
    assert body["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_choices_of_several_prompts_come_in_order(server, engine, encode, stream):
    fields = {"prompt": ["a", "b"], "n": 2, "max_tokens": 1}
    if stream:
        indexes = [chunk["choices"][0]["index"] for chunk in server.stream_completion(**fields)]
    else:
        body = server.complete(**fields).json()
        indexes = [choice["index"] for choice in body["choices"]]
        assert body["usage"] == {
            "prompt_tokens": 2,
            "completion_tokens": 4,
            "total_tokens": 6,
            "prompt_tokens_details": None,
            "completion_tokens_details": None,
        }
    assert sorted(indexes) == [0, 1, 2, 3]
    prompts = {engine_id.rpartition("-")[2]: prompt for engine_id, (prompt, _) in engine.requests.items()}
    assert prompts == {"0": encode("a"), "1": encode("a"), "2": encode("b"), "3": encode("b")}


def test_token_id_prompts_are_not_changed(server, engine):
    server.complete(prompt=[[5, 6], [7]])
    assert sorted(prompt for prompt, _ in engine.requests.values()) == [[5, 6], [7]]


def test_echo_puts_the_prompt_first(server):
    assert server.complete(echo=True).json()["choices"][0]["text"] == PROMPT + TEXT


def test_echo_of_token_ids_is_their_text(server, encode):
    body = server.complete(echo=True, prompt=encode(PROMPT)).json()
    assert body["choices"][0]["text"] == PROMPT + TEXT


def test_echo_of_a_truncated_prompt_is_truncated(server):
    body = server.complete(echo=True, truncate_prompt_tokens=2).json()
    assert body["choices"][0]["text"] == " France is" + TEXT


def test_stream_echoes_once_per_choice(server):
    texts = {0: "", 1: ""}
    for chunk in server.stream_completion(echo=True, n=2):
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == dict.fromkeys((0, 1), PROMPT + TEXT)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_echo_without_output_scores_the_prompt(server, engine, stream):
    fields = {"echo": True, "max_tokens": 0, "logprobs": 1}
    if stream:
        (chunk,) = server.stream_completion(**fields)
        choice = chunk["choices"][0]
    else:
        body = server.complete(**fields).json()
        choice = body["choices"][0]
        assert body["usage"]["completion_tokens"] == 0
    assert (choice["text"], choice["finish_reason"]) == (PROMPT, "length")
    assert choice["logprobs"]["tokens"] == ["The", " capital", " of", " France", " is"]
    assert choice["logprobs"]["token_logprobs"] == [None] + [-1.5] * 4
    ((_, params),) = engine.requests.values()
    assert (params.max_tokens, params.prompt_logprobs) == (1, 1)


BODIES = {"/v1/completions": {"prompt": PROMPT}, "/v1/chat/completions": {"messages": MESSAGES}}


@pytest.mark.parametrize("path", BODIES)
def test_usage_comes_last_or_with_every_chunk_on_request(server, path):
    def chunks(**options):
        return server.stream(path, BODIES[path] | {"n": 2, "stream_options": options})

    *others, last = chunks(include_usage=True)
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 16)
    assert all("usage" not in chunk for chunk in others)
    *others, last = chunks(include_usage=True, continuous_usage_stats=True)
    first = [chunk["usage"] for chunk in others if chunk["choices"][0]["index"] == 0]
    assert [usage["completion_tokens"] for usage in first][-8:] == list(range(1, 9))
    assert {usage["prompt_tokens"] for usage in first} == {last["usage"]["prompt_tokens"]}


def test_server_may_force_usage(serve):
    *chunks, last = serve(enable_force_include_usage=True).stream_completion()
    assert last["usage"]["total_tokens"] == 13
    assert all("usage" in chunk for chunk in chunks)


def test_cached_tokens_are_reported_if_the_server_allows_it(serve, engine):
    engine.num_cached_tokens = 4
    usage = serve(enable_prompt_tokens_details=True).complete(n=2, prompt=["a b c d e", "f g h i j"]).json()["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 8}


def test_token_ids_are_returned_on_request(server, engine, encode):
    choice = server.complete(return_token_ids=True).json()["choices"][0]
    assert choice["prompt_token_ids"] == encode(PROMPT)
    assert choice["token_ids"] == [*engine.reply, 2]


def test_stream_returns_prompt_ids_once(server, engine, encode):
    chunks = server.stream_completion(return_token_ids=True)
    assert chunks[0]["choices"][0]["prompt_token_ids"] == encode(PROMPT)
    assert all("prompt_token_ids" not in chunk["choices"][0] for chunk in chunks[1:])
    assert [token_id for chunk in chunks for token_id in chunk["choices"][0]["token_ids"]] == [*engine.reply, 2]


def test_several_tokens_of_one_step_make_one_chunk(server, engine):
    engine.tokens_per_step = 3
    texts = [chunk["choices"][0]["text"] for chunk in server.stream_completion()]
    assert texts == [" Paris, the", " city of light", "."]


def test_special_tokens_are_shown_on_request(server, engine):
    engine.reply = [*engine.reply, 1]
    assert server.complete().json()["choices"][0]["text"] == TEXT
    assert server.complete(skip_special_tokens=False).json()["choices"][0]["text"] == TEXT + "<|im_start|>"


@pytest.mark.parametrize("text", ["🤗 naïve 日本語 👩‍👩‍👧 end", "ꙮ𝕏ﷺ"])
def test_streams_never_split_a_character(server, engine, encode, text):
    engine.reply = encode(text)
    assert len(engine.reply) > len(text.split()), "the text must take several tokens per character"
    pieces = [chunk["choices"][0]["text"] for chunk in server.stream_completion(max_tokens=100)]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_output_cut_within_a_character_ends_with_a_replacement(server, engine, encode):
    engine.reply = encode("ꙮ")
    assert server.complete(max_tokens=1).json()["choices"][0]["text"] == "\ufffd"


def test_many_choices_are_answered(server):
    assert len(server.complete(n=256, max_tokens=1).json()["choices"]) == 256
