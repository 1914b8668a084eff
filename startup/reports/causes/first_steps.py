"""The first step of the advice, which holds for one log alone: it depends on the rest of the log."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from envs.suggestion import did_you_mean
from startup.reports.causes.cause import KnownCause
from startup.reports.causes.table import LISTS, rows_of

if TYPE_CHECKING:
    from startup.reports.causes.evidence import Evidence

_STEPS: Final = [
    (name.split()[1:], [(words.replace("…", "").split(" | "), step) for words, step in rows_of(name)])
    for name in LISTS
    if name.startswith("steps ")
]
"""Conditions, and rows of words and a step. All conditions must hold. The text must have one of the words. If
`place` is a condition, a file's path may have the word instead."""

_WHOLE: Final = re.compile(r"(\d{1,9})\)? (?:must be|is not) divisible by (?:[a-z_ ]{0,60}\(?)(\d{1,6})")
"""Matches a number that the tensor parallel size must divide, such as that of heads, and this size."""
_BLOCKS: Final = re.compile(r"= ?(\d{1,9}) is not divisible by .{0,60}?= ?(\d{1,6})")
"""Matches the size of one GPU's part of a weight, and that of the blocks that must divide it."""
_LARGEST_SIZE: Final = 1_024
_OF_WORDS: Final = ("unknown", "setting-refused", "unknown-argument", "bad-argument")
"""Causes whose message may reject a word."""

_PACKAGE: Final = re.compile(r"-packages/([\w.-]{1,80}?)(?:\.py|/)")
_NAMED: Final = re.compile(r"(?:from|module|No module named) '([A-Za-z]\w{1,60})")
"""Matches the package in a message about a missing name."""
_UNKNOWN: Final = re.compile(
    r"(?:invalid choice: |unrecognized arguments: |[Uu]nknown [a-z ]{1,40}:? |[Ii]nvalid [a-z ]{1,40}: )"
    r"['\"]?(-{0,2}[\w-]{3,60})"
)
"""Matches a word that is not accepted."""
_WORD: Final = re.compile(r"(?<![\w-])(?:--)?[A-Za-z][\w-]{2,60}")
_LONGEST_STEP: Final = 300
_SENTENCE: Final = re.compile(
    r"(?<=[.;!:])\s+(?=[A-Z`'\"])|(?<=[.!])(?=Please )|\n|[,;(] (?:or |so )?(?=(?:please|try|consider|use|set) )"
)
"""Matches between the sentences of a message, and before a clause that may be an instruction."""


def first_step_of(known: KnownCause | None, text: str, files: Sequence[str], phase: str, run: "Evidence") -> str:
    """The first step for this cause and the line or exception that shows it. Empty if there is none.

    `files` are the files of the traceback, outermost first.
    """
    name, tags = (known.name, known.tags) if known else ("unknown", frozenset())
    if name == "not-divisible":
        return _fitting_size(text, run.settings.value("tensor_parallel_size"))
    if step := instruction_in(text):
        return step
    held = {"place", name, *tags, *run.facts, run.platform, run.backend, *phase.split()}
    for conditions, rows in _STEPS:
        if all(held.intersection(each.split("|")) for each in conditions):
            places = (text, text.lower(), *reversed(files)) if "place" in conditions else (text,)
            found = (step for place in places for words, step in rows if any(word in place for word in words))
            if (step := next(found, "")) and not (known and step.strip(".").removeprefix("Set ") in known.advice):
                return step
    if name == "versions-do-not-fit":
        return _both_packages(text, files)
    return _similar_word(text) if name in _OF_WORDS else ""


def instruction_in(text: str) -> str:
    """The message's own instruction. Empty if the message only says how to report or trace the error."""
    for sentence in _SENTENCE.split(text[:2_000]):
        words = sentence.lower().removeprefix("you can ")
        is_told = words.partition(" ")[0] in LISTS["instructions"]
        if is_told and not any(each in words for each in LISTS["instructions without a remedy"]):
            told = " ".join(sentence.strip(" .)").split())[:_LONGEST_STEP]
            return f"{told[0].upper()}{told[1:]}."
    return ""


def _both_packages(text: str, files: Sequence[str]) -> str:
    """Names two packages: one lacks what the other needs."""
    packages = [found[1] for file in files if (found := _PACKAGE.search(file))]
    named = _NAMED.search(text)
    package = named[1] if named else "".join(packages[-1:])
    if caller := next((each for each in reversed(packages) if each != package), ""):
        return f"{caller} does not fit the installed {package}, so install the {package} that it requires."
    step = "Another package needs another {0}, so install the {0} that it requires, or its release for this {0}."
    return step.format(package) if package else ""


def _similar_word(text: str) -> str:
    """If the message rejects a word, names the most similar word of the message, or a flag."""
    found = _UNKNOWN.search(text)
    if found is None:
        return ""
    suggestion = did_you_mean(found[1], (word for word in _WORD.findall(text) if word != found[1]))
    return f"Correct {found[1]}{suggestion}." if suggestion else ""


def _fitting_size(text: str, set_size: str) -> str:
    """Advice with the largest tensor parallel size below the refused one. Empty if it is unknown."""
    whole, size = _WHOLE.search(text), 0
    if whole:
        total, block, size = int(whole[1]), 1, int(whole[2])
    elif found := _BLOCKS.search(text):
        size = int(set_size) if set_size.isdecimal() else 0
        total, block = int(found[1]) * size, int(found[2])
    sizes = range(min(size, _LARGEST_SIZE) - 1, 0, -1)
    fitting = next((n for n in sizes if total % (n * block) == 0 and (whole or size % n == 0)), 0)
    if not fitting:
        return ""
    others = f" --pipeline-parallel-size {size // fitting}" if size % fitting == 0 else ""
    return f"Set --tensor-parallel-size {fitting}{others}."
