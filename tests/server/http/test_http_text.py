"""Texts of /v1/completions and /v1/chat/completions, whole and as streams: fields, ends, several choices."""

import openai
import pytest

from server.types import EngineOutput
from tests.server.http.conftest import MESSAGES, MODEL, PROMPT, TEXT

BODIES = {"/v1/completions": {"prompt": PROMPT}, "/v1/chat/completions": {"messages": MESSAGES}}


def text_of(server, **fields):
    return server.completion(**fields)["choices"][0]["text"]


def test_a_completion_has_vllms_fields(server):
    body = server.completion(model="smol", request_id="abc")
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


def test_chunks_of_a_completion(server):
    chunks = server.stream_completion()
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 7 + ["stop"]
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    assert all(chunk["object"] == "text_completion" and "usage" not in chunk for chunk in chunks)


def test_a_chat_has_vllms_fields(server):
    body = server.chat_completion(request_id="abc")
    assert body["id"] == "chatcmpl-abc"
    assert body["object"] == "chat.completion"
    (choice,) = body["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": TEXT,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "reasoning": None,
    }
    assert (choice["finish_reason"], choice["stop_reason"], choice["logprobs"]) == ("stop", None, None)
    assert body["usage"]["completion_tokens"] == 8


def test_chunks_of_a_chat_begin_with_the_role_and_end_with_the_reason(server):
    first, *chunks = server.stream_chat()
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 7 + ["stop"]
    assert "stop_reason" not in chunks[0]["choices"][0]
    assert chunks[-1]["choices"][0]["stop_reason"] is None


def test_every_choice_of_a_chat_has_its_role_first_and_its_id_in_the_engine(server, engine):
    chunks = server.stream_chat(n=3)
    assert [chunk["choices"][0]["delta"].get("role") for chunk in chunks[:3]] == ["assistant"] * 3
    choices = server.chat_completion(n=3)["choices"]
    assert [(choice["index"], choice["message"]["content"]) for choice in choices] == [(i, TEXT) for i in range(3)]
    assert {engine_id.rpartition("-")[2] for engine_id in engine.requests} == {"0", "1", "2"}


def test_choices_of_several_prompts_come_in_order(server, engine, encode):
    body = server.completion(prompt=["a", "b"], n=2, max_tokens=1)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert [body["usage"][f"{name}_tokens"] for name in ("prompt", "completion", "total")] == [2, 4, 6]
    prompts = {engine_id.rpartition("-")[2]: prompt for engine_id, (prompt, _) in engine.requests.items()}
    assert prompts == {"0": encode("a"), "1": encode("a"), "2": encode("b"), "3": encode("b")}


def test_same_request_id_twice_at_once_does_not_collide(server, engine):
    assert [server.chat(request_id="same").json()["id"] for _ in range(2)] == ["chatcmpl-same"] * 2
    assert len(engine.requests) == 2


def test_the_role_is_that_of_a_closed_conversation(server):
    assert server.chat(add_generation_prompt=False).json()["choices"][0]["message"]["role"] == "user"


def test_token_id_prompts_are_not_changed(server, engine):
    server.complete(prompt=[[5, 6], [7]])
    assert sorted(prompt for prompt, _ in engine.requests.values()) == [[5, 6], [7]]


def test_echo_puts_the_prompt_first(server, encode):
    assert text_of(server, echo=True) == PROMPT + TEXT
    assert text_of(server, echo=True, prompt=encode(PROMPT)) == PROMPT + TEXT
    assert text_of(server, echo=True, truncate_prompt_tokens=2) == " France is" + TEXT
    assert [choice["text"] for choice in server.completion(echo=True, n=2)["choices"]] == [PROMPT + TEXT] * 2


def test_echo_without_output_scores_the_prompt(server, engine):
    body = server.completion(echo=True, max_tokens=0, logprobs=1)
    (choice,) = body["choices"]
    assert body["usage"]["completion_tokens"] == 0
    assert (choice["text"], choice["finish_reason"]) == (PROMPT, "length")
    assert choice["logprobs"]["tokens"] == ["The", " capital", " of", " France", " is"]
    assert choice["logprobs"]["token_logprobs"] == [None] + [-1.5] * 4
    ((_, params),) = engine.requests.values()
    assert (params.max_tokens, params.prompt_logprobs) == (1, 1)


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
    usage = serve(enable_prompt_tokens_details=True).completion(n=2, prompt=["a b c d e", "f g h i j"])["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 8}


def test_token_ids_are_returned_on_request(server, engine, encode):
    (choice,) = server.completion(return_token_ids=True)["choices"]
    assert choice["prompt_token_ids"] == encode(PROMPT)
    assert choice["token_ids"] == [*engine.reply, 2]
    first, *others = server.stream_completion(return_token_ids=True)
    assert first["choices"][0]["prompt_token_ids"] == encode(PROMPT)
    assert all("prompt_token_ids" not in chunk["choices"][0] for chunk in others)


def test_token_ids_of_a_chat_are_returned_on_request(server, engine):
    body = server.chat_completion(return_token_ids=True)
    ((prompt, _),) = engine.requests.values()
    assert body["prompt_token_ids"] == server.stream_chat(return_token_ids=True)[0]["prompt_token_ids"] == prompt
    assert body["choices"][0]["token_ids"] == [*engine.reply, 2]


def test_several_tokens_of_one_step_make_one_chunk(server, engine):
    engine.tokens_per_step = 3
    texts = [chunk["choices"][0]["text"] for chunk in server.stream_completion()]
    assert texts == [" Paris, the", " city of light", "."]


def test_special_tokens_are_shown_on_request(server, engine):
    engine.reply = [*engine.reply, 1]
    assert text_of(server) == TEXT
    assert text_of(server, skip_special_tokens=False) == TEXT + "<|im_start|>"


@pytest.mark.parametrize("text", ["🤗 naïve 日本語 👩‍👩‍👧 end", "ꙮ𝕏ﷺ"])
def test_streams_never_split_a_character(server, engine, encode, text):
    engine.reply = encode(text)
    assert len(engine.reply) > len(text.split()), "the text must take several tokens per character"
    assert text_of(server, max_tokens=100) == text
    pieces = [chunk["choices"][0]["text"] for chunk in server.stream_completion(max_tokens=100)]
    assert not any("\ufffd" in piece for piece in pieces)


def test_output_cut_within_a_character_ends_with_a_replacement(server, engine, encode):
    engine.reply = encode("ꙮ")
    assert text_of(server, max_tokens=1) == "\ufffd"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({"max_tokens": 2}, (" Paris,", "length", None), id="limit"),
        pytest.param({"stop": ["he", "the city of"]}, (" Paris, t", "stop", "he"), id="string within a token"),
        pytest.param(
            {"stop": " city", "include_stop_str_in_output": True},
            (" Paris, the city", "stop", " city"),
            id="string kept",
        ),
        pytest.param({"stop": " city", "min_tokens": 5}, (TEXT, "stop", None), id="before min_tokens"),
        pytest.param(
            {"stop": "city of hope", "max_tokens": 5},
            (" Paris, the city of", "length", None),
            id="held to the limit",
        ),
        pytest.param({"stop_token_ids": [2], "ignore_eos": True}, (TEXT, "stop", 2), id="stop token"),
    ],
)
def test_where_an_output_ends_and_why(server, fields, expected):
    """No chunk shows a part of a stop string, as both ways end alike."""
    (choice,) = server.completion(**fields)["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == expected


def test_a_stop_string_ends_the_sequence_in_the_engine(server, engine):
    assert server.complete(stop=" city").json()["usage"]["completion_tokens"] == 4
    assert len(engine.aborted) == 1


@pytest.mark.parametrize(("is_kept", "text"), [(False, " Paris, the"), (True, " Paris, the city")])
def test_a_stop_token_is_named_and_shown_only_on_request(server, engine, is_kept, text):
    city = engine.reply[3]
    (choice,) = server.completion(stop_token_ids=[city], include_stop_str_in_output=is_kept)["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (text, "stop", city)


def test_chat_reports_the_stop_reason(server):
    (choice,) = server.chat_completion(stop=",")["choices"]
    assert (choice["message"]["content"], choice["stop_reason"]) == (" Paris", ",")


@pytest.mark.parametrize("api", ["completion", "chat_completion"])
def test_end_without_a_new_token_is_reported(server, engine, api, monkeypatch):
    async def generate(request_id, prompts, num_choices):
        yield EngineOutput(request_id=f"{request_id}-0", token_ids=engine.reply[:1])
        yield EngineOutput(request_id=f"{request_id}-0", finish_reason="length")

    monkeypatch.setattr(engine, "generate", generate, raising=True)
    answer = getattr(server, api)()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 1


def test_openais_client_reads_a_chat_stream_and_assembles_the_message(client):
    with client.chat.completions.stream(
        model=MODEL, messages=MESSAGES, stream_options={"include_usage": True}
    ) as stream:
        final = stream.get_final_completion()
    assert (final.choices[0].message.role, final.choices[0].message.content) == ("assistant", TEXT)
    assert final.usage.completion_tokens == 8


def test_openais_client_raises_a_wrong_key_and_an_error_in_mid_stream(serve, engine):
    server = serve(api_keys=("right",))
    with server.client(api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    engine.fails_after = 3
    with server.client(api_key="right") as client:
        assert client.models.list().data
        with pytest.raises(openai.APIError, match="the grammar became too large"):
            list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))
