"""The real `openai` client works with the server."""

import openai
import pytest

from tests.server.http.conftest import TEXT

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


def test_client_reads_a_chat_stream_with_usage(client):
    stream = client.chat.completions.create(
        model="smol", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    assert chunks[-1].usage.completion_tokens == 8


def test_clients_stream_helper_assembles_the_message(client):
    with client.chat.completions.stream(model="smol", messages=MESSAGES) as stream:
        assert stream.get_final_completion().choices[0].message.content == TEXT


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"model": "other"}, openai.NotFoundError),
        ({"model": "smol", "temperature": 9}, openai.BadRequestError),
        ({"model": "smol", "extra_body": {"top_k": -2}}, openai.BadRequestError),
    ],
    ids=str,
)
def test_client_raises_the_class_of_each_error(client, fields, error):
    with pytest.raises(error) as caught:
        client.chat.completions.create(messages=MESSAGES, **fields)
    assert caught.value.body["message"]


def test_wrong_key_is_an_authentication_error(serve):
    server = serve(api_keys=("right",))
    with server.client(api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    with server.client(api_key="right") as client:
        assert client.models.list().data


def test_error_in_mid_stream_is_raised(client, engine):
    engine.fails_after = 3
    with pytest.raises(openai.APIError, match="the grammar became too large"):
        list(client.chat.completions.create(model="smol", messages=MESSAGES, stream=True))
