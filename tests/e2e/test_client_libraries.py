"""The SDKs of OpenAI and Anthropic use the real model."""

from typing import Any

import pytest

MODEL = "smol"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"temperature": 0}
"""Extra fields, because the newest SDK of Anthropic has no argument for the temperature."""
ASKED: dict[str, Any] = {
    "model": MODEL,
    "system": "You answer questions.",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
}


@pytest.mark.smoke
def test_capital_of_france_is_paris(client):
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=32)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_the_sdk_of_anthropic_streams_to_a_stop_sequence_and_counts_tokens(server):
    from anthropic import Anthropic  # takes a second, also of a run without this test

    with Anthropic(base_url=server.url, api_key="none", max_retries=0) as anthropic:
        with anthropic.messages.stream(**ASKED, max_tokens=32, extra_body=GREEDY, stop_sequences=["Paris"]) as stream:
            text = "".join(stream.text_stream)
            message = stream.get_final_message()
        assert anthropic.messages.count_tokens(**ASKED).input_tokens == message.usage.input_tokens
    assert text
    assert "Paris" not in text
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "Paris")
