"""Bodies of token logprobs; the engine's candidates are (token + 1, token, token + 2), best first."""

from itertools import accumulate


def token_texts(renderer, engine):
    return [renderer.token_text(token_id) for token_id in [*engine.reply, 2]]


def test_completions_report_parallel_lists(server, engine, renderer):
    logprobs = server.completion(logprobs=2)["choices"][0]["logprobs"]
    texts = token_texts(renderer, engine)
    assert logprobs["tokens"] == texts
    assert logprobs["token_logprobs"] == [-1.5] * 8
    assert logprobs["text_offset"] == [0, *accumulate(len(text) for text in texts)][:-1]
    assert logprobs["top_logprobs"][0] == {" Paris": -1.5, renderer.token_text(engine.reply[0] + 1): -0.25}


def test_completions_show_the_sampled_token_beside_the_best(server, engine, renderer):
    assert server.completion(logprobs=0)["choices"][0]["logprobs"]["top_logprobs"][0] == {" Paris": -1.5}
    best = renderer.token_text(engine.reply[0] + 1)
    assert server.completion(logprobs=1)["choices"][0]["logprobs"]["top_logprobs"][0] == {
        " Paris": -1.5,
        best: -0.25,
    }


def test_minus_infinity_is_replaced_by_a_finite_number(server):
    tops = server.completion(logprobs=3, max_tokens=1)["choices"][0]["logprobs"]["top_logprobs"]
    assert sorted(tops[0].values()) == [-9999.0, -1.5, -0.25]


def test_echo_reports_the_prompt_too(server, engine, renderer, encode):
    logprobs = server.completion(logprobs=1, echo=True)["choices"][0]["logprobs"]
    prompt = [renderer.token_text(token_id) for token_id in encode("The capital of France is")]
    assert logprobs["tokens"] == prompt + token_texts(renderer, engine)
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None


def test_chat_reports_tokens_with_their_bytes(server, engine, renderer):
    content = server.chat_completion(logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == token_texts(renderer, engine)
    best = renderer.token_text(engine.reply[0] + 1)
    assert content[0] == {
        "token": " Paris",
        "logprob": -1.5,
        "bytes": list(b" Paris"),
        "top_logprobs": [
            {"token": best, "logprob": -0.25, "bytes": list(best.encode())},
            {"token": " Paris", "logprob": -1.5, "bytes": list(b" Paris")},
        ],
    }


def test_chat_reports_no_candidates_unless_asked(server):
    content = server.chat_completion(logprobs=True)["choices"][0]["logprobs"]["content"]
    assert all(entry["top_logprobs"] == [] for entry in content)


def test_bytes_of_split_characters_are_exact(server, engine, encode):
    engine.reply = encode("ꙮ")
    content = server.chat_completion(logprobs=True)["choices"][0]["logprobs"]["content"]
    assert bytes(byte for entry in content[:-1] for byte in entry["bytes"]) == "ꙮ".encode()
    assert all(len(entry["bytes"]) < 3 for entry in content[:-1])


def test_chat_stream_reports_each_token_with_its_chunk(server, engine):
    chunks = server.stream_chat(logprobs=True)
    assert chunks[0]["choices"][0]["logprobs"] is None
    assert [len(chunk["choices"][0]["logprobs"]["content"]) for chunk in chunks[1:]] == [1] * 8


def test_prompt_logprobs_are_keyed_by_token_id(server, encode, renderer):
    choice = server.complete(prompt_logprobs=1).json()["choices"][0]
    prompt = encode("The capital of France is")
    assert choice["prompt_logprobs"][0] is None
    assert choice["prompt_logprobs"][1] == {
        str(prompt[1]): {"logprob": -1.5, "rank": 2, "decoded_token": " capital"},
        str(prompt[1] + 1): {"logprob": -0.25, "rank": 1, "decoded_token": renderer.token_text(prompt[1] + 1)},
    }


def test_chat_puts_prompt_logprobs_beside_the_choices(server, engine):
    body = server.chat_completion(prompt_logprobs=0, n=2)
    ((prompt, _), _) = engine.requests.values()
    assert [list(entry) for entry in body["prompt_logprobs"][1:]] == [[str(token_id)] for token_id in prompt[1:]]


def test_tokens_are_shown_as_ids_on_request(server, engine):
    expected = [f"token_id:{token_id}" for token_id in [*engine.reply, 2]]
    body = server.completion(logprobs=1, return_tokens_as_token_ids=True)
    assert body["choices"][0]["logprobs"]["tokens"] == expected
    body = server.chat_completion(logprobs=True, return_tokens_as_token_ids=True)
    assert [entry["token"] for entry in body["choices"][0]["logprobs"]["content"]] == expected


def test_request_overrides_the_servers_choice_of_token_ids(serve):
    server = serve(return_tokens_as_token_ids=True)
    assert server.completion(logprobs=0)["choices"][0]["logprobs"]["tokens"][0].startswith("token_id:")
    answer = server.complete(logprobs=0, return_tokens_as_token_ids=False)
    assert answer.json()["choices"][0]["logprobs"]["tokens"][0] == " Paris"
