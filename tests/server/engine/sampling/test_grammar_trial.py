"""A grammar that costs too much stack, memory or time is refused, and ends or delays nothing else."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from server.engine.sampling import grammar, grammar_trial
from server.engine.sampling.grammar import is_harmless
from server.engine.sampling.grammar_trial import GrammarTrials, TokenizerSource, TrialError
from server.terms.types import GuidedDecoding
from tests.server.engine.sampling.byte_tokenizer import EOS, VOCAB_SIZE, build_byte_tokenizer
from tests.server.engine.sampling.guided_engine import PERSON, byte_engine, text_of
from tests.server.engine.sampling.hostile_grammars import CHAINS, NUMBERS, TEXTS
from tests.server.engine.small_engine import Completion, SmallEngine
from tests.server.inline_executor import InlineExecutor
from tests.support.waiting import wait_until

pytestmark = pytest.mark.thorough

YES = GuidedDecoding("regex", "yes")
SLOW = NUMBERS["integer: multipleOf"](99_999_989)
HARMLESS = [
    PERSON,
    YES,
    GuidedDecoding("json_object"),
    GuidedDecoding("regex", r"[a-c]{3}-[0-9]{4}(x|yz)"),
    GuidedDecoding("choice", '["12345678", "no"]'),
    GuidedDecoding("grammar", 'start: "a" ("b" | "ç") inner{2}\ninner: /[de]/ "f"'),
]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[SmallEngine]:
    engine = byte_engine(tmp_path)
    yield engine
    engine.guided.close()


def assert_serves(engine: SmallEngine, completion: Completion) -> None:
    """Checks that the hostile request was served or refused, and that the engine serves another one."""
    assert completion.error is None or completion.fault in ("constraint", "request")
    [after] = engine.complete([[40]], guided=YES)
    assert (text_of(after), after.error) == ("yes", None)
    engine.assert_nothing_leaked()


@pytest.mark.parametrize("num_chars", [1 << 14, 1 << 18])
@pytest.mark.parametrize("name", CHAINS)
def test_no_chain_ends_the_engine(engine, name, num_chars):
    [completion] = engine.complete([[60]], guided=CHAINS[name](num_chars), max_tokens=3)
    assert_serves(engine, completion)


@pytest.mark.parametrize("number", [999, 9999, 99_999_989])
@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_takes_the_engines_memory_or_time(engine, name, number):
    [completion] = engine.complete([[60]], guided=NUMBERS[name](number), max_tokens=20)
    assert_serves(engine, completion)


@pytest.mark.parametrize("num_chars", [1 << 14, 1 << 18])
@pytest.mark.parametrize("name", TEXTS)
def test_no_text_takes_the_engines_memory_or_time(engine, name, num_chars):
    [completion] = engine.complete([[60]], guided=TEXTS[name](num_chars), max_tokens=3)
    assert_serves(engine, completion)


def test_a_refused_grammar_is_the_requests_fault(engine):
    [refused] = engine.complete([[60]], guided=SLOW)
    assert (refused.error or "").startswith("the grammar is too complex. Compiling it needs more than ")
    assert refused.fault == "constraint"


def test_harmless_texts_need_little_stack_memory_and_time(trials, monkeypatch):
    """A trial refuses them with none of its limits, even if these are as low as what any thread can give."""
    limits = (
        "grammar_trial._TRIAL_STACK_BYTES, grammar_trial._MOST_BYTES, grammar_trial._LONGEST_S = 2 << 20, 200 << 20, 2"
    )
    _change_helper(monkeypatch, limits)
    num_harmless = 0
    for guided in _many():
        if is_harmless(guided):
            num_harmless += 1
            try:
                trials.begin().run("llguidance", _translated(guided))
            except ValueError as err:
                assert "too complex" not in str(err), guided
    assert num_harmless > 150


def _many() -> Iterator[GuidedDecoding]:
    for make in (CHAINS | TEXTS).values():
        most = grammar._MOST_HARMLESS_CHARS[make(100).kind]
        yield from (make(most * share // 100) for share in (5, 40, 80, 90, 95))
    for make in NUMBERS.values():
        yield from (make(number) for number in (9, 99, 999, 9999))


@pytest.mark.parametrize("guided", HARMLESS, ids=lambda guided: guided.kind)
def test_harmless_grammars_need_no_trial(engine, guided):
    assert is_harmless(guided)
    engine.complete([[40]], guided=guided, max_tokens=2)
    assert engine.guided._trials._helper is None


def test_a_tried_grammar_is_followed_like_any_other(engine):
    words = GuidedDecoding("regex", "(" + "|".join(f"word{i}" for i in range(400)) + ")")
    assert not is_harmless(words)
    [completion] = engine.complete([[40]], guided=words, max_tokens=20)
    assert text_of(completion).startswith("word")
    assert engine.guided._trials._helper is not None


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets trials run for a minute, so that whatever waits for one fails its test."""
    _change_helper(monkeypatch, "grammar_trial._LONGEST_S = 60.0")


def _change_helper(monkeypatch: pytest.MonkeyPatch, statement: str) -> None:
    """Lets the helper process execute the statement before its `main`."""
    begin = "import sys; sys.path[:0] = sys.argv[1:]; from server.engine.sampling import grammar_trial"
    monkeypatch.setattr(grammar_trial, "_CODE", f"{begin}; {statement}; grammar_trial.main()")


def test_harmless_grammars_do_not_wait_for_a_trial(tmp_path, pool, endless):
    engine = byte_engine(tmp_path, trial_executor=pool)
    slow = engine.add("slow", [60], guided=SLOW)
    others = [engine.add(str(i), [40], guided=guided, max_tokens=2) for i, guided in enumerate(HARMLESS)]
    while any(other.finish_reason is None for other in others):
        engine.step()
    assert slow.finish_reason is None
    engine.core.abort(["slow"])
    engine.assert_nothing_leaked()


def test_an_abort_ends_the_trial_that_nobody_waits_for(tmp_path, pool, endless):
    engine = byte_engine(tmp_path, trial_executor=pool)
    engine.add("slow", [60], guided=SLOW)
    wait_until(lambda: _forks(engine))
    engine.core.abort(["slow"])
    wait_until(lambda: not _forks(engine))
    again = engine.add("again", [60], guided=SLOW)
    wait_until(lambda: _forks(engine))
    assert again.finish_reason is None, "a cancelled trial is not kept"
    engine.core.abort(["again"])
    engine.assert_nothing_leaked()


def _forks(engine: SmallEngine) -> list[psutil.Process]:
    helper = engine.guided._trials._helper
    return [] if helper is None else psutil.Process(helper.process.pid).children()


@pytest.fixture
def trials() -> Iterator[GrammarTrials]:
    vocabulary = build_byte_tokenizer().to_str().encode()
    trials = GrammarTrials(InlineExecutor(), TokenizerSource(vocabulary, VOCAB_SIZE, (EOS,)))
    yield trials
    trials.close()


def test_a_helper_process_that_was_killed_is_started_again(trials):
    trials.begin().run("llguidance", _translated(YES))
    assert trials._helper is not None
    os.kill(trials._helper.process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, trials._helper.process.pid, os.WEXITED | os.WNOWAIT)
    trials.begin().run("llguidance", _translated(YES))


def test_a_trial_finds_faults_and_sizes(trials):
    trial = trials.begin()
    trial.run(
        "llguidance",
        _translated(GuidedDecoding("choice", '["' + '", "'.join(f"{i} words" for i in range(20_000)) + '"]')),
    )
    assert trial.num_bytes > 1 << 20
    with pytest.raises(TrialError, match="unknown"):
        trials.begin().run("llguidance", _translated(GuidedDecoding("grammar", 'start: unknown "a"')))


def test_a_trial_that_was_cancelled_first_does_not_run(trials):
    trial = trials.begin()
    assert trial.cancel()
    with pytest.raises(TrialError, match="cancelled"):
        trial.run("llguidance", _translated(YES))


def test_a_trial_that_has_ended_cannot_be_cancelled(trials):
    trial = trials.begin()
    trial.run("llguidance", _translated(YES))
    assert not trial.cancel()


def test_the_helper_ends_with_the_engine(trials):
    trials.begin().run("llguidance", _translated(YES))
    assert trials._helper is not None
    trials._helper.connection.close()
    assert trials._helper.process.wait() == 0


def test_a_helper_that_cannot_start_fails_the_request(trials, monkeypatch):
    monkeypatch.setattr(grammar_trial.sys, "executable", "/nowhere/python")
    with pytest.raises(TrialError, match="cannot be tried in a process of its own: .*nowhere"):
        trials.begin().run("llguidance", _translated(YES))


def test_a_grammar_that_grows_when_compiled_counts_with_its_memory(engine):
    compiler, guided = engine.guided._compiler, CHAINS["lark: rules"](1 << 18)
    held = compiler.acquire(guided)
    assert held.compiled.exception() is None
    assert held.num_chars > 2 * len(guided.spec)
    compiler.release(held)


def test_the_documentation_names_the_limits():
    text = " ".join((Path(__file__).parents[4] / "docs/api.md").read_text().split())
    seconds, memory = f"{grammar_trial._LONGEST_S:g} s", grammar_trial._MOST_BYTES >> 20
    stack, most = grammar_trial._TRIAL_STACK_BYTES >> 20, grammar._MOST_HARMLESS_CHARS
    assert f"more than {seconds} of processor time, {memory} MiB of memory or {stack} MiB of stack to compile" in text
    assert f"| {seconds} of processor time, {memory} MiB of memory, {stack} MiB of stack |" in text
    assert f"a JSON schema of more than {most['json_schema']} characters, a Lark grammar of more than" in text
    assert f"{most['grammar']}, a regular expression of more than {most['regex']}, choices of more than" in text
    assert f"{most['choice']}, and, except in choices, a number of five digits or more" in text


def _translated(guided: GuidedDecoding) -> str:
    return grammar.translate_grammar(guided)
