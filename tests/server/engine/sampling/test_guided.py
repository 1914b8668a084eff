"""A grammar restricts the output of its own request, of a random model too, and of no other request."""

import json
import re
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from server.engine.sampling import grammar_compiler
from server.engine.sampling.guided import GuidedStates
from server.engine.sequence import Sequence
from server.types import GuidedDecoding, ReasoningMarker, ReasoningRules, SamplingParams
from tests.server.engine.sampling.byte_engine import byte_engine, text_of
from tests.server.engine.sampling.byte_tokenizer import EOS, VOCAB_SIZE, save_byte_tokenizer
from tests.server.engine.sampling.people import PERSON, assert_is_person
from tests.server.engine.small_engine import SmallEngine
from tests.server.engine.tiny_models import random_prompts
from tests.server.inline_executor import InlineExecutor

CHOICES = ["yes", 'say "hi"', "naïve", "日本", "😀"]


@pytest.fixture
def engine(tmp_path: Path) -> SmallEngine:
    return byte_engine(tmp_path)


@pytest.mark.parametrize(
    ("guided", "pattern"),
    [
        (GuidedDecoding("regex", r"[a-c]{3}-[0-9]{2}(x|yz)"), r"[a-c]{3}-[0-9]{2}(x|yz)"),
        (GuidedDecoding("choice", json.dumps(CHOICES)), "|".join(map(re.escape, CHOICES))),
        (GuidedDecoding("grammar", 'start: "a" ("b" | "ç") inner{2}\ninner: /[de]/ "f"'), "a(b|ç)([de]f){2}"),
    ],
    ids=["regex", "choice", "lark"],
)
def test_a_random_model_follows_its_grammar(engine: SmallEngine, guided: GuidedDecoding, pattern: str) -> None:
    completions = [engine.add(str(i), [40], temperature=2.0, seed=i, max_tokens=60, guided=guided) for i in range(30)]
    engine.run()
    texts = [text_of(c) for c in completions]
    assert all(re.fullmatch(pattern, text) for text in texts)
    assert len(set(texts)) > 2
    assert {(c.finish_reason, c.stop_token_id) for c in completions} == {("stop", None)}


def test_an_open_ended_grammar_ends_with_the_end_token(engine: SmallEngine) -> None:
    guided = GuidedDecoding("regex", "[ab]+")
    completion = engine.add("a", [40], guided=guided, logit_bias={EOS: 100.0}, min_tokens=4, max_tokens=20)
    engine.run()
    assert re.fullmatch("[ab]{4}", text_of(completion))
    assert completion.token_ids[-1] == EOS
    assert (completion.finish_reason, completion.stop_token_id) == ("stop", EOS)


def test_max_tokens_truncates_a_grammar(engine: SmallEngine) -> None:
    completion = engine.add("a", [40], guided=PERSON, max_tokens=9)
    engine.run()
    assert (text_of(completion), completion.finish_reason) == ('{"name":"', "length")


@pytest.mark.parametrize(("pattern", "text"), [("yes", "yes"), ("(yes)?", "yes"), ("", "")])
def test_a_complete_grammar_overrides_min_tokens(engine: SmallEngine, pattern: str, text: str) -> None:
    guided = GuidedDecoding("regex", pattern)
    completion = engine.add("a", [40], guided=guided, min_tokens=10, max_tokens=20, logit_bias={EOS: 100.0})
    engine.run()
    assert (text_of(completion), completion.finish_reason) == (text, "stop")


@pytest.mark.parametrize("pattern", ["yes", "(yes)?", "yes|yes!*"])
def test_ignore_eos_does_not_continue_after_a_complete_grammar(engine: SmallEngine, pattern: str) -> None:
    guided = GuidedDecoding("regex", pattern)
    completion = engine.add("a", [40], guided=guided, ignore_eos=True, max_tokens=20, logit_bias={ord("!"): -100.0})
    engine.run()
    assert text_of(completion) in ("", "yes")
    assert completion.finish_reason == "stop"


def test_a_stop_token_ends_a_grammar_early(engine: SmallEngine) -> None:
    completion = engine.add("a", [40], guided=PERSON, stop_token_ids=(ord(":"),), max_tokens=50)
    engine.run()
    assert (text_of(completion), completion.finish_reason, completion.stop_token_id) == ('{"name":', "stop", ord(":"))


@pytest.mark.parametrize(
    "guided", [GuidedDecoding("regex", "(unclosed"), GuidedDecoding("json_schema", '{"type": "x"}')], ids=str
)
def test_an_invalid_grammar_fails_only_its_request(tmp_path: Path, guided: GuidedDecoding) -> None:
    expected = byte_engine(tmp_path).generate([[40], [50]], max_tokens=20)
    engine = byte_engine(tmp_path)
    neighbours = [engine.add("one", [40], max_tokens=20), engine.add("two", [50], max_tokens=20)]
    engine.step()
    refused = engine.add("bad", [60], guided=guided)
    engine.step()
    assert refused.finish_reason == "error"
    assert refused.error.startswith("the grammar cannot be used: ")
    engine.run()
    assert [c.token_ids for c in neighbours] == expected
    engine.assert_nothing_leaked()


class Panic(BaseException):
    """As a panic of Rust code is."""


@pytest.mark.parametrize("error", [RecursionError("too deep"), Panic("too deep")], ids=["error", "panic"])
def test_a_failure_of_the_compiler_fails_only_its_request(
    engine: SmallEngine, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr(grammar_compiler, "translate_grammar", Mock(side_effect=error))
    refused = engine.add("bad", [60], guided=GuidedDecoding("regex", "x"))
    neighbour = engine.add("one", [40], max_tokens=2)
    engine.run()
    assert refused.error == "the grammar cannot be used: too deep"
    assert neighbour.finish_reason == "length"
    engine.assert_nothing_leaked()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_that_leaves_no_token_fails_only_its_request(tmp_path: Path, temperature: float) -> None:
    [expected] = byte_engine(tmp_path).generate([[40]], max_tokens=20)
    engine = byte_engine(tmp_path)
    neighbour = engine.add("one", [40], max_tokens=20)
    impossible = engine.add(
        "bad",
        [60],
        guided=GuidedDecoding("regex", "ab"),
        allowed_token_ids=(ord("a"), ord("c")),
        temperature=temperature,
    )
    engine.run()
    assert impossible.token_ids == [ord("a")]
    assert impossible.error == "no token can be sampled: the request's parameters exclude all of them"
    assert neighbour.token_ids == expected
    engine.assert_nothing_leaked()


def test_a_model_without_a_tokenizer_file_rejects_only_grammars(tmp_path: Path) -> None:
    engine = byte_engine(tmp_path, has_tokenizer=False)
    refused = engine.add("guided", [40], guided=GuidedDecoding("json_object"))
    [free] = engine.complete([[40]])
    assert refused.finish_reason == "error"
    assert "tokenizer.json" in (refused.error or "")
    assert free.finish_reason == "length"


@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
def test_each_sequence_follows_a_schema_from_its_start(engine: SmallEngine, temperature: float) -> None:
    choices = [
        engine.add(str(i), [40 + i], temperature=temperature, seed=i, max_tokens=400, guided=PERSON) for i in range(6)
    ]
    engine.run()
    for choice in choices:
        assert_is_person(text_of(choice))
        assert choice.finish_reason == "stop"
    engine.assert_nothing_leaked()


@pytest.mark.parametrize("has_reasoning", [False, True])
def test_a_preempted_request_continues_its_reasoning_and_its_grammar(tmp_path: Path, has_reasoning: bool) -> None:
    engine = byte_engine(tmp_path, num_slots=4, max_model_len=200, kv_cache_tokens=260)
    prompts = random_prompts(50, 51, 52, 53)
    end = b"</t>"
    rules = ReasoningRules(
        ends=(ReasoningMarker("</t>"),), is_open=True, delays_grammar=True, budget=20, forced_end=tuple(end)
    )
    options = {"max_tokens": 145, "guided": PERSON, "reasoning": rules if has_reasoning else None, "temperature": 1.0}
    people = [engine.add(str(i), p, seed=i, **options) for i, p in enumerate(prompts)]
    engine.step()
    youngest = engine.scheduler._by_id["3"]
    engine.run()
    assert youngest.num_preemptions > 0
    for person in people:
        thoughts, answer = person.token_ids[:24], person.token_ids[24:]
        assert not has_reasoning or bytes(thoughts[20:]) == end
        assert_is_person(bytes(answer).decode() if has_reasoning else text_of(person))
    engine.assert_nothing_leaked()


def test_logits_beyond_the_vocabulary_are_excluded(tmp_path: Path) -> None:
    states = GuidedStates(
        tokenizer_path=save_byte_tokenizer(tmp_path),
        vocab_size=VOCAB_SIZE,
        eos_token_ids=(EOS,),
        executor=InlineExecutor(),
    )
    sequence = Sequence("a", [40], SamplingParams(max_tokens=5, guided=GuidedDecoding("regex", "[xy]")))
    states.start(sequence)
    row = torch.zeros(VOCAB_SIZE + 100)
    states.mask(sequence, row)
    assert row.isfinite().nonzero()[:, 0].tolist() == [ord("x"), ord("y")]


def test_an_aborted_requests_grammar_is_dropped(engine: SmallEngine) -> None:
    engine.add("a", [40], guided=PERSON)
    engine.step()
    engine.core.abort(["a"])
    engine.assert_nothing_leaked()


@pytest.mark.thorough
def test_the_real_model_answers_within_each_kind_of_grammar(
    real_model: PreTrainedModel, real_tokenizer: PreTrainedTokenizerBase, model_path: Path
) -> None:
    messages = [{"role": "user", "content": "What is the capital of Japan?"}]
    question = real_tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    json_text = real_tokenizer('{"a": 1}\n{"b": 2}\n{"c": 3}\n')["input_ids"]
    engine = SmallEngine(real_model, max_model_len=600, tokenizer_path=model_path, eos_token_ids=(2,))
    found = {
        name: engine.add(name, prompt, guided=guided, max_tokens=200)
        for name, prompt, guided in (
            ("object", json_text, GuidedDecoding("json_object")),
            ("person", question, PERSON),
            ("choice", question, GuidedDecoding("choice", '["Paris", "Tokyo", "Rome"]')),
            ("regex", question, GuidedDecoding("regex", "The capital of Japan is [A-Z][a-z]{2,11}\\.")),
            ("lark", question, GuidedDecoding("grammar", 'start: "I think: " CITY\nCITY: "Tokyo" | "Kyoto"')),
        )
    }
    engine.run()
    texts = {name: real_tokenizer.decode(c.token_ids) for name, c in found.items()}
    assert isinstance(json.loads(texts["object"]), dict)
    assert_is_person(texts["person"])
    assert texts["choice"] in ("Paris", "Tokyo", "Rome")
    assert texts["regex"] == "The capital of Japan is Tokyo."
    assert texts["lark"] in ("I think: Tokyo", "I think: Kyoto")
    assert {c.finish_reason for c in found.values()} == {"stop"}
