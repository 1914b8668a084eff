"""A grammar restricts only its own request. It is compiled beside the steps, once for all sequences."""

import itertools
import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from llguidance import LLTokenizer, TokenizerWrapper
from sentencepiece import SentencePieceTrainer
from transformers import AutoTokenizer

from server.engine.sampling import grammar, guided
from server.engine.sampling.grammar import GrammarCompiler
from server.engine.sampling.grammar_trial import GrammarTrials, TokenizerSource
from server.engine.sampling.guided import GuidedStates, read_tokenizer, read_vocabulary
from server.engine.sequence import Sequence
from server.terms.types import GuidedDecoding, ReasoningMarker, ReasoningRules, SamplingParams
from tests.server.engine.sampling.byte_tokenizer import EOS, VOCAB_SIZE, save_byte_tokenizer
from tests.server.engine.sampling.guided_engine import PERSON, byte_engine, byte_model, text_of
from tests.server.engine.small_engine import SmallEngine
from tests.server.inline_executor import InlineExecutor

pytestmark = pytest.mark.thorough

_TEXT = (ReasoningMarker("<t>"), ReasoningMarker("</t>"))
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
def test_a_random_model_follows_its_grammar(engine, guided, pattern):
    completions = [engine.add(str(i), [40], temperature=2.0, seed=i, max_tokens=60, guided=guided) for i in range(30)]
    engine.run()
    texts = [text_of(c) for c in completions]
    assert all(re.fullmatch(pattern, text) for text in texts)
    assert len(set(texts)) > 2
    assert {(c.finish_reason, c.stop_token_id) for c in completions} == {("stop", None)}


def test_an_open_ended_grammar_ends_with_the_end_token(engine):
    guided = GuidedDecoding("regex", "[ab]+")
    [completion] = engine.complete([[40]], guided=guided, logit_bias={EOS: 100.0}, min_tokens=4, max_tokens=20)
    assert re.fullmatch("[ab]{4}", text_of(completion))
    assert completion.token_ids[-1] == EOS
    assert (completion.finish_reason, completion.stop_token_id) == ("stop", EOS)


_MIN_TOKENS: dict[str, Any] = {"min_tokens": 10, "logit_bias": {EOS: 100.0}}
_IGNORE_EOS: dict[str, Any] = {"ignore_eos": True, "logit_bias": {ord("!"): -100.0}}


@pytest.mark.parametrize(
    ("pattern", "options", "texts"),
    [
        *(("yes", _MIN_TOKENS, ["yes"]), ("(yes)?", _MIN_TOKENS, ["yes"]), ("", _MIN_TOKENS, [""])),
        *((pattern, _IGNORE_EOS, ["yes", ""]) for pattern in ("yes", "(yes)?", "yes|yes!*")),
    ],
)
def test_a_complete_grammar_overrides_min_tokens_and_ignore_eos(engine, pattern, options, texts):
    [completion] = engine.complete([[40]], guided=GuidedDecoding("regex", pattern), max_tokens=20, **options)
    assert text_of(completion) in texts
    assert completion.finish_reason == "stop"


def test_a_stop_token_ends_a_grammar_early(engine):
    [completion] = engine.complete([[40]], guided=PERSON, stop_token_ids=(ord(":"),), max_tokens=50)
    assert (text_of(completion), completion.finish_reason, completion.stop_token_id) == ('{"name":', "stop", ord(":"))


class Panic(BaseException):
    """An error like a panic of Rust code, which is no Exception."""


@pytest.mark.parametrize("error", [RecursionError("too deep"), Panic("too deep")], ids=["error", "panic"])
def test_a_failure_of_the_compiler_fails_only_its_request(engine, monkeypatch, error):
    monkeypatch.setattr(grammar, "translate_grammar", Mock(side_effect=error))
    refused = engine.add("bad", [60], guided=GuidedDecoding("regex", "x"))
    [neighbour] = engine.complete([[40]], max_tokens=2)
    assert (refused.error, refused.fault) == ("too deep", "constraint")
    assert neighbour.finish_reason == "length"
    engine.assert_nothing_leaked()


USES = pytest.mark.parametrize(
    "use",
    [
        pytest.param({"guided": GuidedDecoding("regex", "[xy]{4}")}, id="grammar"),
        pytest.param(
            {"reasoning": ReasoningRules(starts=_TEXT[:1], ends=_TEXT[1:], is_open=True, budget=2, forced_end=(120,))},
            id="thinking budget",
        ),
    ],
)


@USES
def test_a_model_without_a_tokenizer_file_rejects_only_what_needs_it(tmp_path, use):
    engine = SmallEngine(byte_model(), eos_token_ids=(EOS,), tokenizer_path=tmp_path)
    refused = engine.add("refused", [40], **use)
    rules = ReasoningRules(ends=(ReasoningMarker("<other>", 257),), budget=3, forced_end=(257,))
    served = [engine.add("free", [40]), engine.add("a token's marker", [40], reasoning=rules)]
    engine.run()
    begin = "" if "guided" in use else "the thinking budget cannot be used: "
    assert refused.error == f"{begin}the model has no tokenizer.json, which llguidance needs"
    assert [completion.finish_reason for completion in served] == ["length"] * 2


def test_a_sentencepiece_model_is_converted_by_transformers(tmp_path):
    texts = iter(["the quick brown fox jumps over the lazy dog", "say yes or no to the fox"] * 20)
    with (tmp_path / "tokenizer.model").open("wb") as written:
        SentencePieceTrainer.train(
            sentence_iterator=texts, model_writer=written, vocab_size=320, model_type="bpe", byte_fallback=True
        )
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    vocabulary = read_vocabulary(tmp_path)
    assert vocabulary is not None
    token_ids = LLTokenizer(vocabulary).tokenize_str("quick yes")
    assert AutoTokenizer.from_pretrained(tmp_path).decode(token_ids) == "quick yes"
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    assert read_vocabulary(tmp_path) is None


@USES
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda folder: shutil.rmtree(folder.resolve()), id="removed"),
        pytest.param(lambda folder: (folder.unlink(), folder.symlink_to("other")), id="flipped link"),
        pytest.param(lambda folder: (folder / "tokenizer.json").write_text("{}"), id="written in place"),
    ],
)
def test_a_tokenizer_file_that_changes_after_the_start_is_not_read_again(tmp_path, use, change):
    (tmp_path / "first").mkdir()
    (tmp_path / "model").symlink_to("first")
    expected = byte_engine(tmp_path / "model").complete([[40]], max_tokens=8, **use)
    engine = byte_engine(tmp_path / "model")
    change(tmp_path / "model")
    found = engine.complete([[40]], max_tokens=8, **use)
    assert [(c.token_ids, c.error) for c in found] == [(c.token_ids, None) for c in expected]


def test_logits_beyond_the_vocabulary_are_excluded(tmp_path):
    states = GuidedStates(
        tokenizer=read_tokenizer(save_byte_tokenizer(tmp_path), vocab_size=VOCAB_SIZE, eos_token_ids=(EOS,)),
        executor=InlineExecutor(),
        trial_executor=InlineExecutor(),
    )
    sequence = Sequence("a", [40], SamplingParams(max_tokens=5, guided=GuidedDecoding("regex", "[xy]")))
    states.start(sequence)
    row = torch.zeros(VOCAB_SIZE + 100)
    states.mask(sequence, row)
    assert row.isfinite().nonzero()[:, 0].tolist() == [ord("x"), ord("y")]


class LongTokens:
    """A vocabulary with all texts of up to six letters a, b and blanks, as llguidance needs it."""

    tokens = [bytes([byte]) for byte in range(256)] + [
        "".join(letters).encode() for length in range(2, 7) for letters in itertools.product("ab ", repeat=length)
    ]
    tokens.append(b"<end>")
    eos_token_id = bos_token_id = len(tokens) - 1
    special_token_ids = (eos_token_id,)

    def __call__(self, text: str) -> list[int]:
        return list(text.encode())


def test_an_ambiguous_grammar_is_refused_before_its_first_token():
    compiler = GrammarCompiler(
        InlineExecutor(), lambda: LLTokenizer(TokenizerWrapper(LongTokens())), Mock(GrammarTrials), lambda: None
    )
    found = compiler.acquire(
        GuidedDecoding("grammar", 'start: s\ns: s s | s s s | "a" | "b" | " "')
    ).compiled.exception()
    assert isinstance(found, grammar.GrammarError)
    assert "Too many items" in str(found)


@pytest.mark.parametrize(
    "constraint",
    [
        PERSON,
        GuidedDecoding("json_object"),
        GuidedDecoding("regex", "[ab]+"),
        GuidedDecoding("choice", json.dumps(CHOICES)),
        GuidedDecoding("grammar", 'start: a\na: a b | b a | "x"\nb: a a | "x" | "y"'),
    ],
    ids=lambda guided: guided.kind,
)
@pytest.mark.parametrize("slow", ["compute_bitmask", "consume_token"])
def test_a_constraint_whose_token_takes_too_long_fails_only_its_request(engine, monkeypatch, constraint, slow):
    spent_s = iter(range(1000))
    is_first = iter([slow == "consume_token"])
    monkeypatch.setattr(guided, "thread_time", lambda: 0 if next(is_first, False) else next(spent_s))
    neighbour = engine.add("free", [40], max_tokens=2)
    [refused] = engine.complete([[60]], guided=constraint)
    assert (refused.error or "").startswith("the grammar is too ambiguous: ")
    assert neighbour.finish_reason == "length"
    engine.assert_nothing_leaked()


YES = GuidedDecoding("regex", "yes")
WORDS = GuidedDecoding("json_schema", json.dumps({"enum": [f"word{i}" for i in range(600)]}))
AMBIGUOUS = GuidedDecoding("grammar", "start: " + " | ".join(f'"a{i}"' for i in range(2500)))
"""A grammar that has more alternatives after `a` than llguidance's limit."""


class HeldExecutor(Executor):
    """Runs submitted functions when the test calls `run`."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Future[Any], Callable[[], Any]]] = []
        self._num_run = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        self.jobs.append((future, lambda: fn(*args, **kwargs)))
        return future

    def run(self) -> None:
        for future, job in self.jobs[self._num_run :]:
            self._num_run += 1
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(job())
                except Exception as err:  # noqa: BLE001
                    future.set_exception(err)


@pytest.fixture
def executor() -> HeldExecutor:
    return HeldExecutor()


@pytest.fixture
def held_engine(tmp_path: Path, executor: HeldExecutor) -> SmallEngine:
    return byte_engine(tmp_path, max_model_len=100, executor=executor)


def test_choices_and_later_requests_share_one_compilation(held_engine, executor):
    for name in "ab":
        choices = [held_engine.add(f"{name}{i}", [40], guided=GuidedDecoding("regex", "yes")) for i in range(20)]
        executor.run()
        held_engine.run()
        assert {text_of(choice) for choice in choices} == {"yes"}
    assert len(executor.jobs) == 1
    held_engine.assert_nothing_leaked()


def test_an_abort_cancels_a_compilation_that_nobody_waits_for(held_engine, executor):
    for i in range(3):
        held_engine.add(str(i), [40], guided=YES)
    held_engine.core.abort(["0", "2"])
    assert not executor.jobs[0][0].cancelled()
    held_engine.core.abort(["1"])
    assert executor.jobs[0][0].cancelled()
    held_engine.assert_nothing_leaked()
    again = held_engine.add("again", [40], guided=YES)
    executor.run()
    held_engine.run()
    assert text_of(again) == "yes"
    held_engine.assert_nothing_leaked()


NO_TOKENIZER = TokenizerSource(None, 1, ())


def test_unused_grammars_are_bounded_by_their_size():
    compiler = GrammarCompiler(
        InlineExecutor(), pytest.fail, GrammarTrials(InlineExecutor(), NO_TOKENIZER), wake=lambda: None
    )
    for i in range(20):
        compiler._compile = compiler._try = lambda *given: None  # type: ignore[method-assign]
        compiler.release(compiler.acquire(GuidedDecoding("regex", str(i) + "x" * 200_000)))
    kept = sum(len(each.spec) for each in compiler._grammars if each is not None)
    assert 600_000 < kept <= grammar._MOST_KEPT_CHARS
    compiler.release(compiler.acquire(GuidedDecoding("regex", "x" * 5_000_000)))
    assert sum(len(each.spec) for each in compiler._grammars if each is not None) <= grammar._MOST_KEPT_CHARS


def test_sequences_wait_for_the_memory_of_their_copies(held_engine, executor, monkeypatch):
    monkeypatch.setattr(guided, "_MOST_COPIED_CHARS", 3 * len(WORDS.spec))
    completions = [held_engine.add(str(i), [40], guided=WORDS, max_tokens=40) for i in range(10)]
    executor.run()
    most = 0
    while held_engine.core.has_work:
        held_engine.step()
        most = max(most, len(held_engine.guided._matchers))
    assert most == 3
    assert all(json.loads(text_of(each)).startswith("word") for each in completions)
    held_engine.assert_nothing_leaked()


def test_small_grammars_do_not_overtake_a_large_one_that_waits_for_memory(held_engine, executor, monkeypatch):
    monkeypatch.setattr(guided, "_MOST_COPIED_CHARS", 2 * grammar._LEAST_CHARS)
    assert len(WORDS.spec) > grammar._LEAST_CHARS
    held_engine.add("first", [40], guided=YES)
    held_engine.add("large", [40], guided=WORDS, max_tokens=3)
    held_engine.add("second", [40], guided=YES)
    held_engine.add("free", [40], max_tokens=1)
    executor.run()
    held_engine.run()
    begun = dict.fromkeys(name for step in held_engine.steps for name in step)
    assert list(begun) == ["free", "first", "large", "second"]
    held_engine.assert_nothing_leaked()


NO_TOKEN = {"guided": GuidedDecoding("regex", "ab"), "allowed_token_ids": (ord("a"), ord("c"))}
FAILURES: dict[str, tuple[dict[str, Any], str, str]] = {
    "expression": ({"guided": GuidedDecoding("regex", "(unclosed")}, "", ""),
    "schema": ({"guided": GuidedDecoding("json_schema", '{"type": "x"}')}, "", ""),
    "no token": (NO_TOKEN, "a", "no token can be sampled: the request's parameters exclude all of them"),
    "no token to draw": (NO_TOKEN | {"temperature": 1.0}, "a", "no token can be sampled: "),
    "llguidance's limit": ({"guided": AMBIGUOUS}, "a", "max is 2000"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_constraint_that_cannot_be_followed_fails_only_its_request(tmp_path, name):
    params, text, error = FAILURES[name]
    expected = byte_engine(tmp_path).generate([[40], [50]], max_tokens=20)
    engine = byte_engine(tmp_path)
    neighbours = [engine.add(str(token), [token], max_tokens=20) for token in (40, 50)]
    engine.step()
    [refused] = engine.complete([[60]], **params)
    assert (text_of(refused), refused.finish_reason) == (text, "error")
    assert error in (refused.error or "")
    assert [c.token_ids for c in neighbours] == expected
    assert bool(engine.guided._compiler._grammars) == bool(text), "an invalid grammar is not kept"
    engine.assert_nothing_leaked()
