"""A grammar begins after the end of the reasoning. An exhausted budget forces this end."""

import re
from pathlib import Path
from typing import Any

import pytest

from server.engine.sampling.reasoning import ReasoningState
from server.terms.types import GuidedDecoding, ReasoningMarker, ReasoningRules
from tests.server.engine.sampling.byte_tokenizer import EOS
from tests.server.engine.sampling.guided_engine import PERSON, assert_is_person, byte_engine
from tests.server.engine.small_engine import Completion, SmallEngine
from tests.server.engine.tiny_models import random_prompts

pytestmark = pytest.mark.thorough

END = 257
"""The marker that ends the reasoning: the tokenizer's second special token."""
END_MARKER = ReasoningMarker("<other>", END)
END_TEXT = b"</t>"
DIGITS = GuidedDecoding("regex", "[0-9]{3}")


@pytest.fixture
def engine(tmp_path: Path) -> SmallEngine:
    return byte_engine(tmp_path)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_begins_after_the_markers_token(engine, temperature):
    rules = ReasoningRules(ends=(END_MARKER,), delays_grammar=True, is_open=True, budget=7, forced_end=(END,))
    completions = [
        engine.add(
            str(i),
            [40 + i],
            guided=PERSON,
            reasoning=rules,
            max_tokens=400,
            logit_bias={EOS: -100.0},
            temperature=temperature,
            seed=i,
        )
        for i in range(3)
    ]
    engine.run()
    for completion in completions:
        thoughts, answer = _split(completion)
        assert len(thoughts) == 7
        assert_is_person(answer)
        assert completion.finish_reason == "stop"
    engine.assert_nothing_leaked()


def test_without_the_marker_the_grammar_never_begins(engine):
    options: dict[str, Any] = {"max_tokens": 20, "logit_bias": {END: -100.0}}
    [free] = engine.generate([[40]], **options)
    waits = ReasoningRules(ends=(END_MARKER,), delays_grammar=True)
    [guided] = engine.complete([[40]], guided=DIGITS, reasoning=waits, **options)
    assert (guided.token_ids, guided.finish_reason) == (free, "length")


@pytest.mark.parametrize("token_id", [None, END])
def test_a_marker_of_ordinary_tokens_is_found_by_its_text(engine, token_id):
    rules = ReasoningRules(ends=(ReasoningMarker("ab", token_id),), delays_grammar=True)
    bias = {ord("a"): 50.0, ord("b"): 50.0}
    completions = [
        engine.add(
            str(i), [40], guided=DIGITS, reasoning=rules, temperature=2.0, seed=i, max_tokens=60, logit_bias=bias
        )
        for i in range(8)
    ]
    engine.run()
    texts = [bytes(c.token_ids).decode() for c in completions]
    assert all(re.fullmatch("b*a+b[0-9]{3}", text) for text in texts)
    assert len(set(texts)) > 3


@pytest.mark.parametrize(("budget", "num_in_prompt"), [(0, 0), (1, 0), (5, 0), (2, 3)])
@pytest.mark.parametrize("forced", [(END,), tuple(b"enough" + END_TEXT)], ids=["token", "phrase"])
def test_the_budget_forces_the_end_and_includes_reasoning_in_the_prompt(engine, budget, num_in_prompt, forced):
    [free] = engine.generate([[40]], max_tokens=30)
    ends = (END_MARKER, ReasoningMarker("</t>"))
    total = {"budget": budget + num_in_prompt, "num_spent_tokens": num_in_prompt}
    rules = ReasoningRules(is_open=True, forced_end=forced, ends=ends, **total)
    [limited] = engine.complete([[40]], reasoning=rules, max_tokens=30)
    assert limited.token_ids[:budget] == free[:budget]
    assert tuple(limited.token_ids[budget:][: len(forced)]) == forced
    assert len(limited.token_ids) > budget + len(forced)
    engine.assert_nothing_leaked()


def test_the_budget_overrides_all_other_restrictions(engine):
    rules = ReasoningRules(is_open=True, budget=2, forced_end=(END,), ends=(END_MARKER,))
    [completion] = engine.complete(
        [[40]],
        reasoning=rules,
        max_tokens=8,
        temperature=1.0,
        top_k=1,
        seed=1,
        allowed_token_ids=(50, 51),
        logit_bias={END: -100.0},
        repetition_penalty=2.0,
        logprobs=0,
    )
    assert completion.token_ids[2] == END
    assert {*completion.token_ids} - {END} <= {50, 51}
    assert -60 < completion.logprobs[2].logprob < 0, "the log-probability is of the raw distribution"


def test_a_limited_request_leaves_its_neighbours_and_their_seeds_alone(tmp_path):
    options: dict[str, Any] = {"max_tokens": 30, "temperature": 1.0, "seed": 7}
    expected = byte_engine(tmp_path).generate([[40], [50]], **options)
    engine = byte_engine(tmp_path)
    starts, ends = (ReasoningMarker("<t>"),), (ReasoningMarker("</t>"),)
    rules = ReasoningRules(starts=starts, ends=ends, is_open=True, budget=3, forced_end=tuple(END_TEXT))
    neighbours = [engine.add(str(i), [i], **options) for i in (40, 50)]
    limited = [engine.add(f"limited-{i}", [40], reasoning=rules, **options) for i in range(3)]
    engine.run()
    assert [c.token_ids for c in neighbours] == expected
    for completion in limited:
        assert completion.token_ids[:3] == expected[0][:3]
        assert bytes(completion.token_ids[3:7]) == END_TEXT


def test_preemption_keeps_budget_and_grammar(tmp_path):
    engine = byte_engine(tmp_path, num_slots=2, max_model_len=200, kv_cache_tokens=200)
    rules = ReasoningRules(
        ends=(ReasoningMarker("</t>"),), is_open=True, delays_grammar=True, budget=20, forced_end=tuple(END_TEXT)
    )
    completions = [
        engine.add(str(i), prompt, max_tokens=145, guided=PERSON, reasoning=rules, temperature=1.0, seed=i)
        for i, prompt in enumerate(random_prompts(50, 51))
    ]
    engine.run()
    assert engine.stats.num_preemptions > 0
    for completion in completions:
        assert bytes(completion.token_ids[20:24]) == END_TEXT
        assert_is_person(bytes(completion.token_ids[24:]).decode())
    engine.assert_nothing_leaked()


def test_a_token_may_end_the_reasoning_and_begin_the_answer():
    """Tokenizers have tokens such as `>{`."""
    texts = {1: b"</t", 2: b'>{"', 3: b"x</t>", 4: b">\n\n"}
    ends = (ReasoningMarker("</t>"),)
    state = ReasoningState(ReasoningRules(ends=ends, delays_grammar=True), texts.__getitem__)
    assert state.advance(1) is None
    assert state.delays_grammar
    assert state.advance(2) == (ends[0], b'{"')
    assert not state.delays_grammar
    other = ReasoningState(ReasoningRules(ends=ends), texts.__getitem__)
    found = [other.advance(token) for token in (1, 1, 4, 3)]
    assert found == [None, None, (ends[0], b"\n\n"), (ends[0], b"")]


@pytest.mark.parametrize(
    ("marker", "symbol", "forced"),
    [
        pytest.param(ReasoningMarker("<other>", END, begins_answer=True), "<[257]>", (END,), id="token"),
        pytest.param(ReasoningMarker("<call>", None, begins_answer=True), '"<call>"', tuple(b"<call>"), id="text"),
    ],
)
def test_the_grammar_contains_a_marker_that_belongs_to_the_answer(engine, marker, symbol, forced):
    guided = GuidedDecoding("grammar", f"start: {symbol} /[0-9]{{3}}/")
    rules = ReasoningRules(ends=(marker,), is_open=True, delays_grammar=True, budget=4, forced_end=forced)
    [completion] = engine.complete([[40]], guided=guided, reasoning=rules, max_tokens=40)
    assert tuple(completion.token_ids[4:][: len(forced)]) == forced
    assert re.fullmatch(b"[0-9]{3}", bytes(completion.token_ids[4 + len(forced) :]))
    assert completion.finish_reason == "stop"


@pytest.mark.parametrize("reasons", [True, False])
def test_optional_reasoning_is_decided_by_the_first_token(engine, reasons):
    start = ReasoningMarker("<other>", END)
    rules = ReasoningRules(
        starts=(start,), ends=(ReasoningMarker("</t>"),), is_optional=True, budget=3, forced_end=tuple(END_TEXT)
    )
    [completion] = engine.complete(
        [[40]], guided=DIGITS, reasoning=rules, max_tokens=40, logit_bias={END: 100.0 if reasons else -100.0}
    )
    assert re.fullmatch(b"[0-9]{3}", bytes(completion.token_ids[-3:]))
    assert len(completion.token_ids) == (1 + 3 + len(END_TEXT) + 3 if reasons else 3)
    assert completion.finish_reason == "stop"


def test_the_budget_begins_with_the_start_marker_in_the_output():
    rules = ReasoningRules(budget=2, forced_end=(9, 8), starts=(ReasoningMarker("<t>", 7),), ends=(END_MARKER,))
    state = ReasoningState(rules, lambda _: b"")
    assert _forced(state, [1, 1, 1, 7, 1]) == [None] * 5
    assert _forced(state, [1, 9, 8]) == [9, 8, None]
    assert _forced(state, [1, 1, 7, 1, END, 1, 1]) == [None] * 7
    assert _forced(state, [7, 1, 1]) == [None, None, 9]


def _forced(state: ReasoningState, token_ids: list[int]) -> list[int | None]:
    """For each token, the token that is forced after it, or None."""
    forced = []
    for token_id in token_ids:
        state.advance(token_id)
        forced.append(state.forced_token_id)
    return forced


def _split(completion: Completion) -> tuple[list[int], str]:
    """The tokens of the reasoning, and the text of the answer."""
    end = completion.token_ids.index(END)
    return completion.token_ids[:end], bytes(completion.token_ids[end + 1 :]).decode()
