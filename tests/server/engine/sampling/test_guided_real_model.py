"""The real model follows grammars with sensible content."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from server.types import GuidedDecoding
from tests.server.engine.sampling.people import PERSON, assert_is_person
from tests.server.engine.small_engine import SmallEngine

pytestmark = pytest.mark.thorough


@pytest.fixture
def real_engine(real_model: PreTrainedModel, model_path: Path) -> SmallEngine:
    return SmallEngine(
        real_model, num_slots=8, max_model_len=600, tokenizer_path=model_path, eos_token_ids=(2,), prefix_tokens=500
    )


def test_the_real_model_describes_people(real_engine, real_tokenizer):
    completions = []
    for i, question in enumerate(("Describe a person.", "Who was the first on the moon?", "Beschreibe Oma.", "Hi!")):
        for temperature in (0.0, 0.9):
            completions.append(
                real_engine.add(
                    f"{i} {temperature}",
                    _chat(real_tokenizer, question),
                    temperature=temperature,
                    seed=i,
                    guided=PERSON,
                    max_tokens=200,
                )
            )
    real_engine.run()
    for completion in completions:
        assert completion.finish_reason == "stop"
        assert_is_person(real_tokenizer.decode(completion.token_ids))
    real_engine.assert_nothing_leaked()


def test_the_real_model_adds_no_members_to_an_object(real_engine, real_tokenizer):
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
    }
    prompt = _chat(real_tokenizer, "Extract: Jason is 25 years old")
    guided = GuidedDecoding("json_schema", json.dumps(schema))
    completion = real_engine.add("extract", prompt, guided=guided, max_tokens=100)
    real_engine.run()
    assert json.loads(real_tokenizer.decode(completion.token_ids)) == {"name": "Jason", "age": 25}
    assert completion.finish_reason == "stop"


def test_the_real_model_answers_within_each_kind_of_grammar(real_engine, real_tokenizer):
    json_text = real_tokenizer('{"a": 1}\n{"b": 2}\n{"c": 3}\n')["input_ids"]
    question = _chat(real_tokenizer, "What is the capital of Japan?")
    found = {
        name: real_engine.add(name, prompt, guided=guided, max_tokens=80)
        for name, prompt, guided in (
            ("object", json_text, GuidedDecoding("json_object")),
            ("choice", question, GuidedDecoding("choice", '["Paris", "Tokyo", "Rome"]')),
            ("regex", question, GuidedDecoding("regex", "The capital of Japan is [A-Z][a-z]{2,11}\\.")),
            ("lark", question, GuidedDecoding("grammar", 'start: "I think: " CITY\nCITY: "Tokyo" | "Kyoto"')),
        )
    }
    real_engine.run()
    texts = {name: real_tokenizer.decode(c.token_ids) for name, c in found.items()}
    assert isinstance(json.loads(texts["object"]), dict)
    assert texts["choice"] in ("Paris", "Tokyo", "Rome")
    assert texts["regex"] == "The capital of Japan is Tokyo."
    assert texts["lark"] in ("I think: Tokyo", "I think: Kyoto")
    assert {c.finish_reason for c in found.values()} == {"stop"}


def _chat(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    messages = [{"role": "user", "content": question}]
    token_ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    return token_ids
