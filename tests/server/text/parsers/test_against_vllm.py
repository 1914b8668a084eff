"""vLLM's parsers find in the transcripts what ours find.

In the transcripts that `DIFFERENT` counts, vLLM 0.32 loses text or a call, misreads values, or does not know
that the prompt has opened the reasoning.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest

from server.text.parsers.formats import REASONING_FORMATS
from server.text.parsers.output_parser import CallArguments, CallStart, Content, PromptEnd, Reasoning
from tests.server.text.parsers.transcripts import FUNCTIONS, TRANSCRIPTS, Part, Transcript, read_parts
from tests.support.peer_vllm import ask_vllm, needs_vllm

pytestmark = [pytest.mark.slow, needs_vllm, pytest.mark.timeout(600)]

SCRIPT: Final = Path(__file__).with_name("vllm_parsers.py")
ORDINARY_TEXT: Final = ("granite", "olmo3", "hunyuan_a13b")
"""Formats whose tags of reasoning are not tokens."""
DIFFERENT: Final = {
    "tools": {
        "deepseek_v3": 1,
        "functiongemma": 1,
        "gemma4": 2,
        "gigachat3": 1,
        "glm47": 1,
        "granite": 2,
        "hermes": 3,
        "llama3_json": 1,
        "mistral": 4,
        "olmo3": 1,
        "openai": 1,
        "phi4_mini_json": 1,
        "pythonic": 1,
        "qwen3_xml": 4,
    },
    "reasoning": {"granite": 1, "hunyuan_a13b": 2, "mistral": 1, "olmo3": 2},
}


def asked(kind: str) -> dict[str, list[Transcript]]:
    """Format -> transcripts with calls, or with reasoning."""
    found: dict[str, list[Transcript]] = {}
    for one in TRANSCRIPTS:
        name, other = (one.tools, one.reasoning) if kind == "tools" else (one.reasoning, one.tools)
        if name and not other and one.text and name not in ("forced", "openai_gptoss"):
            found.setdefault(name, []).append(one)
    return found


def task(kind: str, name: str, transcripts: list[Transcript]) -> dict[str, Any]:
    """What `vllm_parsers.py` parses for one format."""
    texts = [one.text for one in transcripts]
    if kind == "tools":
        tokens = {found for text in texts for found in re.findall(r"</?[^<>=\s/]+>|\[/?[A-Z_]{4,}\]", text)}
        functions = [{"name": name, "parameters": parameters} for name, parameters in FUNCTIONS.items()]
        functions.append({"name": "f", "parameters": None})
        return {"tokens": sorted(tokens), "kwargs": {}, "functions": functions, "cases": [(text, []) for text in texts]}
    form = REASONING_FORMATS[name]
    prompts = {PromptEnd.SILENT: [], PromptEnd.OPEN: form.starts[:1], PromptEnd.ENDED: (form.starts[0], form.ends[0])}
    return {
        "tokens": [] if name in ORDINARY_TEXT else [*form.starts, *form.ends, *form.answer_starts, "<assistant>"],
        "kwargs": {"enable_thinking": True, "reasoning_effort": "high"},
        "functions": [],
        "cases": [(one.text, prompts[one.prompt_end]) for one in transcripts],
    }


def meaning(parts: list[Part]) -> Any:
    """The parts without their order, which vLLM's answers do not have. Blanks around content do not count."""
    return (
        "".join(part.text for part in parts if isinstance(part, Reasoning)),
        "".join(part for part in parts if isinstance(part, str)).strip(),
        [part for part in parts if type(part) is tuple],
    )


def meaning_of_vllms(answer: dict[str, Any]) -> Any:
    if "error" in answer:
        return answer["error"]
    events = [Reasoning(answer["reasoning"]), Content(answer["content"])]
    for call in answer["calls"]:
        events += [CallStart(call["name"]), CallArguments(call["arguments"] or "")]
    return meaning(read_parts(events))


def test_transcripts_equal_vllms(tmp_path):
    texts = {kind: asked(kind) for kind in DIFFERENT}
    question = {kind: {name: task(kind, name, texts[kind][name]) for name in texts[kind]} for kind in texts}
    answers = ask_vllm(SCRIPT, question, tmp_path, timeout_s=580)
    different = {
        kind: Counter(
            name
            for name in texts[kind]
            for one, answer in zip(texts[kind][name], answers[kind][name], strict=True)
            if meaning([*one.parts]) not in [meaning_of_vllms(result) for result in answer.values() if result]
        )
        for kind in texts
    }
    assert different == DIFFERENT
