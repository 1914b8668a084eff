"""Grammars are compiled beside the engine's steps, once for all sequences with the same one."""

import json
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest

from server.engine.sampling import grammar, guided
from server.engine.sampling.grammar import GrammarCompiler
from server.types import GuidedDecoding
from tests.server.engine.sampling.guided_engine import byte_engine, text_of
from tests.server.engine.small_engine import SmallEngine
from tests.server.inline_executor import InlineExecutor

YES = GuidedDecoding("regex", "yes")
WORDS = GuidedDecoding("json_schema", json.dumps({"enum": [f"word{i}" for i in range(600)]}))
AMBIGUOUS = GuidedDecoding("grammar", "start: " + " | ".join(f'"a{i}"' for i in range(2500)))
"""After `a`, llguidance follows more alternatives than its limit."""


class HeldExecutor(Executor):
    """Runs what was submitted when the test says so."""

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
def engine(tmp_path: Path, executor: HeldExecutor) -> SmallEngine:
    return byte_engine(tmp_path, max_model_len=100, executor=executor)


def test_other_sequences_run_while_a_grammar_is_compiled(engine, executor):
    waiting = engine.add("guided", [40], guided=YES)
    [free] = engine.complete([[40]], max_tokens=5)
    assert free.finish_reason == "length"
    assert waiting.finish_reason is None
    assert engine.stats.num_waiting == 1
    executor.run()
    engine.run()
    assert text_of(waiting) == "yes"
    engine.assert_nothing_leaked()


def test_choices_and_later_requests_share_one_compilation(engine, executor):
    for name in "ab":
        choices = [engine.add(f"{name}{i}", [40], guided=GuidedDecoding("regex", "yes")) for i in range(20)]
        executor.run()
        engine.run()
        assert {text_of(choice) for choice in choices} == {"yes"}
    assert len(executor.jobs) == 1
    engine.assert_nothing_leaked()


def test_a_copy_is_made_only_for_sequences_that_run(engine, executor):
    for i in range(50):
        engine.add(str(i), [40], guided=WORDS, max_tokens=40)
    executor.run()
    most = 0
    while engine.core.has_work:
        engine.step()
        most = max(most, len(engine.guided._matchers))
    assert most == engine.num_slots
    engine.assert_nothing_leaked()


def test_an_abort_cancels_a_compilation_that_nobody_waits_for(engine, executor):
    for i in range(3):
        engine.add(str(i), [40], guided=YES)
    engine.core.abort(["0", "2"])
    assert not executor.jobs[0][0].cancelled()
    engine.core.abort(["1"])
    assert executor.jobs[0][0].cancelled()
    engine.assert_nothing_leaked()
    again = engine.add("again", [40], guided=YES)
    executor.run()
    engine.run()
    assert text_of(again) == "yes"
    engine.assert_nothing_leaked()


def test_a_grammar_that_does_not_compile_is_not_kept(engine, executor):
    refused = [engine.add(str(i), [40], guided=GuidedDecoding("regex", "(unclosed")) for i in range(3)]
    executor.run()
    engine.run()
    assert [each.finish_reason for each in refused] == ["error"] * 3
    assert not engine.guided._compiler._grammars
    engine.assert_nothing_leaked()


def test_unused_grammars_are_bounded_by_their_size():
    compiler = GrammarCompiler(InlineExecutor(), load_tokenizer=_no_tokenizer, wake=lambda: None)
    for i in range(20):
        compiler._compile = lambda guided: None  # type: ignore[method-assign]
        compiler.release(compiler.acquire(GuidedDecoding("regex", str(i) + "x" * 200_000)))
    kept = sum(len(each.spec) for each in compiler._grammars if each is not None)
    assert 600_000 < kept <= grammar._MOST_KEPT_CHARS
    compiler.release(compiler.acquire(GuidedDecoding("regex", "x" * 5_000_000)))
    assert sum(len(each.spec) for each in compiler._grammars if each is not None) <= grammar._MOST_KEPT_CHARS


def test_sequences_wait_for_the_memory_of_their_copies(engine, executor, monkeypatch):
    monkeypatch.setattr(guided, "_MOST_COPIED_CHARS", 3 * len(WORDS.spec))
    completions = [engine.add(str(i), [40], guided=WORDS, max_tokens=40) for i in range(10)]
    executor.run()
    most = 0
    while engine.core.has_work:
        engine.step()
        most = max(most, len(engine.guided._matchers))
    assert most == 3
    assert all(json.loads(text_of(each)).startswith("word") for each in completions)
    engine.assert_nothing_leaked()


def test_small_grammars_do_not_overtake_a_large_one_that_waits_for_memory(engine, executor, monkeypatch):
    monkeypatch.setattr(guided, "_MOST_COPIED_CHARS", 2 * grammar._LEAST_CHARS)
    assert len(WORDS.spec) > grammar._LEAST_CHARS
    engine.add("first", [40], guided=YES)
    engine.add("large", [40], guided=WORDS, max_tokens=3)
    engine.add("second", [40], guided=YES)
    engine.add("free", [40], max_tokens=1)
    executor.run()
    engine.run()
    begun = dict.fromkeys(name for step in engine.steps for name in step)
    assert list(begun) == ["free", "first", "large", "second"]
    engine.assert_nothing_leaked()


def test_a_limit_of_llguidance_fails_only_the_sequence_that_exceeds_it(tmp_path):
    engine = byte_engine(tmp_path, max_model_len=100)
    [expected] = engine.generate([[40]], max_tokens=20)
    neighbour = engine.add("one", [40], max_tokens=20)
    [ambiguous] = engine.complete([[60]], guided=AMBIGUOUS)
    assert ambiguous.finish_reason == "error"
    assert "max is 2000" in (ambiguous.error or "")
    assert neighbour.token_ids == expected
    engine.assert_nothing_leaked()


def _no_tokenizer() -> Any:
    raise AssertionError
