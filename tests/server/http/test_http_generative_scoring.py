"""/generative_scoring over HTTP, with a scripted engine whose log-probabilities are known."""

import math

import pytest

LABELS = [11, 10]
"""The scripted engine samples 10 and reports -1.5 for it, and -0.25 for its neighbour 11."""


@pytest.fixture(autouse=True)
def reply(engine):
    engine.reset([10])


def _score(server, **fields):
    return server.post("/generative_scoring", {"query": "a", "items": [" b"], "label_token_ids": LABELS} | fields)


def test_score_is_the_first_labels_share(server):
    answer = _score(server, items=[" b", " c d"]).json()
    assert list(answer) == ["id", "object", "created", "model", "data", "usage"]
    assert answer["id"].startswith("generative-scoring-")
    assert [item["index"] for item in answer["data"]] == [0, 1]
    expected = math.exp(-0.25) / (math.exp(-0.25) + math.exp(-1.5))
    assert [item["score"] for item in answer["data"]] == [pytest.approx(expected)] * 2
    assert answer["usage"]["prompt_tokens"] == 5
    assert answer["usage"]["completion_tokens"] == 2


def test_without_softmax_the_score_is_a_probability_among_all_tokens(server):
    [item] = _score(server, apply_softmax=False).json()["data"]
    assert item["score"] == pytest.approx(math.exp(-0.25))


def test_prompt_is_the_query_and_the_item(server, engine, encode):
    _score(server, items=[" b"])
    _score(server, items=[" b"], item_first=True)
    _score(server, query=[5, 6], items=[[7], [], [8, 9]])
    prompts = [prompt for prompt, _ in engine.requests.values()]
    query, item = encode("a"), encode(" b")
    assert prompts[:2] == [query + item, item + query]
    assert sorted(prompts[2:]) == [[5, 6], [5, 6, 7], [5, 6, 8, 9]]
    for _, params in engine.requests.values():
        assert (params.max_tokens, params.logprob_token_ids) == (1, tuple(LABELS))


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"label_token_ids": []}, "label_token_ids", "length >= 1"),
        ({"label_token_ids": [9999999999]}, "label_token_ids", "out of vocabulary range"),
        ({"label_token_ids": [-1]}, "label_token_ids", "out of vocabulary range"),
        ({"label_token_ids": None}, "label_token_ids", "array"),
        ({"items": []}, "items", "length >= 1"),
        ({"items": [" b"] * 10**5}, "items", "at most"),
        ({"query": "", "items": [""]}, "prompt", "no tokens"),
    ],
)
def test_bad_requests_name_the_field(server, fields, param, words):
    response = _score(server, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert words in error["message"]
