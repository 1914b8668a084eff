"""Our parsers give the results of vLLM's parsers. `-s` prints the numbers of texts and differences."""

import random
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from server.terms.parser_paths import REASONING_FORMATS
from server.text.parsers.base import Content, PromptEnd, Reasoning
from server.text.parsers.registry import load_reasoning_format
from tests.server.text.parsers.differences import reason_of_difference
from tests.server.text.parsers.formats import FORMATS, LOSSES
from tests.server.text.parsers.parsed import parse, parsed_by_vllm
from tests.server.text.parsers.raw_texts import FUNCTIONS, raw_texts
from tests.support.peer_vllm import ask_vllm, needs_vllm

pytestmark = [pytest.mark.slow, needs_vllm, pytest.mark.timeout(600)]

SCRIPT = Path(__file__).with_name("vllm_parsers.py")
TAG_FORMATS = [name for name, path in REASONING_FORMATS.items() if path.module == "reasoning_formats"]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """vLLM's results for all formats, in the order of the texts."""
    tools = {
        form.name: {
            "tokens": form.markers,
            "kwargs": {},
            "functions": FUNCTIONS,
            "cases": [(raw.text, []) for raw in raw_texts(form)],
        }
        for form in FORMATS
    }
    reasoning = {}
    for name in TAG_FORMATS:
        form = load_reasoning_format(name)
        prompts = {
            PromptEnd.SILENT: [],
            PromptEnd.OPEN: [form.starts[0]],
            PromptEnd.ENDED: [form.starts[0], form.ends[0]],
        }
        tags = [] if name in ORDINARY_TEXT else [*form.starts, *form.ends, *form.answer_starts, "<assistant>"]
        cases = [(case.text, prompts[case.prompt_end]) for case in create_cases(name)]
        reasoning[name] = {"tokens": tags, "kwargs": KWARGS, "functions": [], "cases": cases}
    question = {"tools": tools, "reasoning": reasoning}
    return ask_vllm(SCRIPT, question, tmp_path_factory.mktemp("vllm"), timeout_s=580)


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_calls_equal_vllms(form, answers):
    texts = raw_texts(form)
    assert len(texts) >= 200
    counts = Counter()
    for raw, answer in zip(texts, answers["tools"][form.name], strict=True):
        ours = parse(form, [raw.text])
        vllm = [parsed_by_vllm(answer["whole"]), parsed_by_vllm(answer["streamed"])]
        if ours.meaning in [theirs.meaning for theirs in vllm]:
            counts["equal"] += 1
            continue
        reason = reason_of_difference(form.name, ours, vllm)
        is_allowed = raw.kind in ("truncated", "damaged") or reason in LOSSES.get(form.name, ())
        assert reason is not None and is_allowed, f"{raw}\nours {ours}\nvLLM {vllm}"
        counts[reason] += 1
    print(f"\n{form.name}: {len(texts)} texts, {dict(counts)}")


NUM_CASES = 250
KWARGS = {"enable_thinking": True, "reasoning_effort": "high"}
ORDINARY_TEXT = ("granite", "olmo3", "hunyuan_a13b")
"""Formats whose tags are not tokens."""
PIECES = ["I think", " ", "\n", "é🎉", "1 < 2", "</", "<th", "think>", "Yes.", "{}", "<|x", "Here is", ":"]


class Case(NamedTuple):
    text: str
    prompt_end: PromptEnd


class Parts(NamedTuple):
    """The two parts of an output."""

    reasoning: str
    content: str

    @classmethod
    def of_vllm(cls, answer: dict[str, Any]) -> "Parts":
        return cls(answer.get("reasoning") or "", answer.get("content") or "")


def create_cases(name: str) -> list[Case]:
    """Random outputs of the format, whole and cut off."""
    form, dice = load_reasoning_format(name), random.Random(name)

    def words() -> str:
        return "".join(dice.choices(PIECES, k=dice.randrange(6)))

    cases = []
    for _ in range(NUM_CASES):
        end = PromptEnd.SILENT if name in ORDINARY_TEXT else dice.choice(list(PromptEnd))
        start = dice.choice(form.starts) if dice.random() < 0.7 or not form.is_open_at_start else ""
        if end is not PromptEnd.SILENT:
            start = ""
        thoughts = words() + dice.choice(form.ends)
        answer = dice.choice([*form.answer_starts, "", "", ""]) + words()
        text = start + thoughts + answer if end is not PromptEnd.ENDED else answer
        cases.append(Case(text[: dice.randrange(len(text) + 1)] if dice.random() < 0.3 else text, end))
    return [case for case in cases if case.text]


@pytest.mark.parametrize("name", TAG_FORMATS)
def test_reasoning_equals_vllms(name, answers):
    cases = create_cases(name)
    counts = Counter()
    for case, answer in zip(cases, answers["reasoning"][name], strict=True):
        ours = parse_reasoning(name, case)
        theirs = [Parts.of_vllm(result) for result in answer.values() if result is not None]
        reason = "equal" if ours in theirs else reason_of_other_reasoning(name, case, ours, theirs)
        assert reason is not None, f"{case}\nours {ours}\nvLLM {theirs}"
        counts[reason] += 1
    print(f"\n{name}: {len(cases)} texts, {dict(counts)}")
    assert len(cases) > 200
    assert counts["equal"] > len(cases) / 2


def reason_of_other_reasoning(name: str, case: Case, ours: Parts, vllm: list[Parts]) -> str | None:
    """The fault of vLLM that explains the difference. None if no known fault explains it."""
    if name == "mistral" and case.prompt_end is PromptEnd.OPEN:
        return "vLLM does not see that the prompt has opened the reasoning"
    for theirs in vllm:
        if name == "ernie45" and theirs.reasoning == ours.reasoning and theirs.content.strip("\n") == ours.content:
            return "vLLM drops line breaks only if they are a token of their own"
        if name in ORDINARY_TEXT and theirs == ("", case.text) and not ours.content:
            return "vLLM takes reasoning without an end for content"
        if "".join(theirs.reasoning.split()) == "".join(ours.reasoning.split()) and theirs.content == ours.content:
            return "vLLM loses white space before the beginning of a tag"
    return None


def parse_reasoning(name: str, case: Case) -> Parts:
    parser = load_reasoning_format(name).create_parser(case.prompt_end)
    events = [event for character in case.text for event in parser.feed(character, ())] + parser.finish()
    return Parts(*("".join(event.text for event in events if isinstance(event, kind)) for kind in (Reasoning, Content)))
