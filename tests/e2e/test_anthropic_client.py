"""The real model, used through the Anthropic SDK."""

from collections.abc import Iterator
from typing import Any

import pytest
from anthropic import Anthropic

from tests.e2e.conftest import MODEL_NAME
from tests.e2e.server_process import ServerProcess

GREEDY = {"temperature": 0}
"""The newest SDKs have no argument for it."""
ASKED: dict[str, Any] = {
    "model": MODEL_NAME,
    "system": "You answer questions.",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
}


@pytest.fixture(scope="module")
def anthropic(server: ServerProcess) -> Iterator[Anthropic]:
    """The SDK, connected to the server that all tests share."""
    with Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def test_capital_of_france_is_paris(anthropic):
    message = anthropic.messages.create(**ASKED, max_tokens=32, extra_body=GREEDY)
    (block,) = message.content
    assert block.type == "text"
    assert "Paris" in block.text
    assert message.stop_reason == "end_turn"
    assert anthropic.messages.count_tokens(**ASKED).input_tokens == message.usage.input_tokens


def test_a_stream_stops_at_a_sequence(anthropic):
    with anthropic.messages.stream(**ASKED, max_tokens=32, extra_body=GREEDY, stop_sequences=["Paris"]) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert text
    assert "Paris" not in text
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "Paris")
