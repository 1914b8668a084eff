"""The table of known causes and of vLLM's parts, which `known_causes.txt` has in the order of comparison."""

import re
from functools import cache
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Final, NamedTuple

from startup.reports.causes.cause import KnownCause, Pattern

_HEAD: Final = re.compile(r"(\S+)(?: \((own|[\w.-]+#\d+)\))?((?:,? [a-z-]+)*)")
_WORD: Final = re.compile(r"\w+")
_Text = tuple[int, KnownCause, Pattern]
"""A text's place in the order of comparison, its cause and its pattern."""


class Part(NamedTuple):
    """A part of vLLM that settings turn on or choose."""

    files: tuple[str, ...]
    """Parts of the paths of its files."""
    settings: tuple[str, ...]
    """The arguments as vLLM's log names them, and beginnings of the names of variables."""
    words: tuple[str, ...] = ()
    """Words in an exception, or in the line that raised it, that also show this part."""
    known: KnownCause | None = None

    def depth(self, file: str) -> int:
        """Where the path of the file names the part. The deepest folder decides. -1 if nowhere."""
        return max((file.rfind(each) for each in self.files), default=-1)


def _read() -> tuple[list[KnownCause], list[Part], dict[str, tuple[str, ...]]]:
    causes, parts, lists = [], [], {}
    text = Path(__file__).with_name("known_causes.txt").read_text(encoding="utf-8")
    for block in text.rstrip("\n").split("\n\n"):
        head, *lines = block.split("\n")
        if head.startswith("* "):
            lists[head[2:]] = tuple(lines)
        elif not head.startswith("#"):
            known, part = _read_block(head, lines)
            causes += [known] if known else []
            known = known or next((each for each in causes if each.name == head[2:]), None)
            parts += [part._replace(known=known)] if part.settings else []
    return causes, parts, lists


def _read_block(head: str, lines: list[str]) -> tuple[KnownCause | None, Part]:
    named = {key: [line[len(key) + 1 :] for line in lines if line.startswith(f"{key} ")] for key in _KEYS}
    files, settings, words = (tuple(", ".join(named[key]).split(", ")) if named[key] else () for key in _KEYS[3:])
    known = None
    if head[0] != "-" and (found := _HEAD.fullmatch(head)):
        texts = " | ".join([*(f"() of …{file}" for file in files), *named["?"]])
        tags = frozenset(found[3].replace(",", "").split())
        phase = " ".join(named["phase"])
        known = KnownCause(found[1], lines[0], texts, " ".join(named[">"]), tags, phase=phase, source=found[2] or "")
    return known, Part(files, settings, words)


_KEYS: Final = ("?", ">", "phase", "files", "settings", "words")
_CAUSES, PARTS, LISTS = _read()
"""The frame that raised an exception decides on its part, then outer frames. If two parts match a frame, the
first decides."""
KNOWN: Final = tuple(known for known in _CAUSES if known.source)
"""All causes with texts, in the order of comparison. More general causes come later."""
OWN: Final = tuple(known for known in _CAUSES if not known.source)
"""The causes that are named in `StartupError.cause`. They are not searched for in logs."""
BY_NAME: Final = {known.name: known for known in (*OWN, *KNOWN)}
BY_CODE: Final = {known.code: known for known in BY_NAME.values()}
"""Code -> known cause."""
OWN_FAULT: Final = BY_NAME["vllm-cli"]
FORKED_DRIVER: Final = BY_NAME["cuda-fork"]
FAILED_PARTS: Final = tuple(part.known for part in PARTS if part.known)
"""Causes about parts of vLLM. Their advice is to search for the message, and to leave out settings."""
SETTING_REFUSED: Final = BY_NAME["setting-refused"]
"""Used for an exception that recommends or refuses a setting, which the digest names. It has no texts."""
ERROR_IN_CODE: Final = BY_NAME["error-in-code"]
"""Used for an exception that matches no other cause."""
NOT_IN_LOG: Final = BY_NAME["cause-not-in-log"]
"""Used if no other cause is found."""
STOPPED: Final = BY_NAME["stopped"]
"""Counts only if nothing failed before the signal. Therefore the text alone does not show this cause."""


def rows_of(name: str) -> list[tuple[str, str]]:
    """The rows `A => B` of a list, as pairs."""
    return [(row.partition(" => ")[0], row.partition(" => ")[2]) for row in LISTS[name]]


def parts_of(file: str) -> list[Part]:
    """The parts that the path of a file names, that of the deepest folder first."""
    return sorted((part for part in PARTS if part.depth(file) >= 0), key=lambda part: -part.depth(file))


@cache
def _index() -> tuple[dict[str, list[_Text]], list[_Text]]:
    """The known texts by a whole word in them, and those without one. Most lines have none of the words."""
    by_word: dict[str, list[_Text]] = {}
    others: list[_Text] = []
    for number, (known, pattern) in enumerate((each, pattern) for each in KNOWN for pattern in each.patterns):
        found = ((part, each) for part in pattern[0] for each in _WORD.finditer(part))
        words = [each[0] for part, each in found if each.start() > 0 and each.end() < len(part)]
        (by_word.setdefault(max(words, key=len), []) if words else others).append((number, known, pattern))
    return by_word, others


def known_in(text: str) -> list[KnownCause]:
    """The causes that have a text in this line, in the order of comparison."""
    by_word, others = _index()
    texts = chain(others, *(by_word[word] for word in by_word.keys() & _WORD.findall(text)))
    found = [each for each in texts if each[2][0][0] in text and each[1].has(text, each[2])]
    return [*dict.fromkeys(known for _, known, _ in sorted(found, key=itemgetter(0)))] if found else []
