"""/v1/chat/completions/batch: several conversations in one request, one choice for each."""

import pytest

CONVERSATIONS = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "It is"}],
]


def batch(server, **fields):
    return server.post("/v1/chat/completions/batch", {"messages": CONVERSATIONS} | fields)


def test_each_conversation_gets_a_choice(server, engine, renderer):
    body = batch(server, return_token_ids=True).json()
    assert [(choice["index"], choice["message"]["content"]) for choice in body["choices"]] == [
        (0, " Paris, the city of light."),
        (1, " Paris, the city of light."),
    ]
    prompts = [prompt for prompt, _ in engine.requests.values()]
    assert ["Hi<|im_end|>" in renderer.detokenize(prompt) for prompt in prompts] == [False, True]
    assert body["usage"]["prompt_tokens"] == sum(map(len, prompts))
    assert body["prompt_token_ids"] is None


def test_each_conversation_is_continued_with_its_own_echo(server):
    fields = {"continue_final_message": True, "echo": True}
    conversations = [[{"role": "assistant", "content": text}] for text in ("It is", "Here is")]
    body = batch(server, messages=conversations, **fields).json()
    assert [choice["message"]["content"] for choice in body["choices"]] == [
        "It is Paris, the city of light.",
        "Here is Paris, the city of light.",
    ]


def test_streams_and_tools_are_ignored(server):
    tool = {"type": "function", "function": {"name": "f"}}
    assert len(batch(server, stream=True, tools=[tool], tool_choice="required").json()["choices"]) == 2


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"messages": []}, "messages"),
        ({"messages": [CONVERSATIONS[0], []]}, "messages"),
        ({"messages": CONVERSATIONS[0]}, "messages"),
        ({"messages": [CONVERSATIONS[0]] * 2049}, "messages"),
        ({"messages": [CONVERSATIONS[0], [{"content": "x"}]]}, "messages"),
        ({"kv_transfer_params": {"prompt_token_ids": [1]}}, "kv_transfer_params.prompt_token_ids"),
        ({"logprob_token_ids": [1]}, "logprob_token_ids"),
    ],
)
def test_bad_batches_are_rejected(server, engine, fields, param):
    response = batch(server, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert not engine.requests
