"""OpenAI's SDK uses the real model. `server/http` uses the SDKs in all ways, with a scripted engine."""


def test_capital_of_france_is_paris(client):
    question = [{"role": "user", "content": "What is the capital of France?"}]
    answer = client.chat.completions.create(model="smol", messages=question, temperature=0, max_tokens=32)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
