"""POST /v1/chat/completions, whole and as a stream."""

from tests.server.http.conftest import TEXT


def test_response_has_vllms_fields(server):
    body = server.chat(request_id="abc").json()
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


def test_stream_begins_with_the_role_and_ends_with_the_reason(server):
    first, *chunks = server.stream_chat()
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == TEXT
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 7 + ["stop"]
    assert "stop_reason" not in chunks[0]["choices"][0]
    assert chunks[-1]["choices"][0]["stop_reason"] is None


def test_every_choice_gets_its_role_first(server):
    chunks = server.stream_chat(n=3)
    assert [chunk["choices"][0]["delta"].get("role") for chunk in chunks[:3]] == ["assistant"] * 3
    texts = {0: "", 1: "", 2: ""}
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["delta"]["content"]
    assert texts == dict.fromkeys((0, 1, 2), TEXT)


def test_several_choices_have_different_ids_in_the_engine(server, engine):
    assert [choice["index"] for choice in server.chat(n=3).json()["choices"]] == [0, 1, 2]
    assert {engine_id.rpartition("-")[2] for engine_id in engine.requests} == {"0", "1", "2"}


def test_server_chooses_the_role(serve):
    assert serve(response_role="oracle").chat().json()["choices"][0]["message"]["role"] == "oracle"


def test_role_of_a_closed_conversation_is_the_last_one(server):
    assert server.chat(add_generation_prompt=False).json()["choices"][0]["message"]["role"] == "user"


def test_token_ids_are_returned_on_request(server, engine):
    body = server.chat(return_token_ids=True).json()
    ((prompt, _),) = engine.requests.values()
    assert body["prompt_token_ids"] == prompt
    assert body["choices"][0]["token_ids"] == [*engine.reply, 2]


def test_stream_returns_token_ids_on_request(server, engine):
    first, *chunks = server.stream_chat(return_token_ids=True)
    ((prompt, _),) = engine.requests.values()
    assert first["prompt_token_ids"] == prompt
    assert [token_id for chunk in chunks for token_id in chunk["choices"][0]["token_ids"]] == [*engine.reply, 2]


def test_same_request_id_twice_at_once_does_not_collide(server, engine):
    assert [server.chat(request_id="same").json()["id"] for _ in range(2)] == ["chatcmpl-same"] * 2
    assert len(engine.requests) == 2
