"""The table of known causes and of vLLM's parts, which `known_causes.yaml` has in the order of comparison."""

import re
from collections.abc import Iterator
from functools import cache
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, NamedTuple

from startup.errors import OWN_FAULT_CAUSE
from vllm_cli.explain.cause import KnownCause, Pattern

_WORD: Final = re.compile(r"\w+")
_PLUGIN: Final = re.compile(r"/vllm_(?!cli/|flash_attn/)\w+/(?!(?:.*/)?vllm/)")
"""Matches the path of a file of a plugin or a derivative of vLLM, such as `vllm_ascend`."""


class _Text(NamedTuple):
    """A text by which a cause is recognized."""

    number: int
    """Its place in the order of comparison."""
    known: KnownCause
    pattern: Pattern


class Part(NamedTuple):
    """A part of vLLM."""

    files: tuple[str, ...]
    """Parts of the paths of its files."""
    known: KnownCause

    def depth(self, file: str) -> int:
        """Where the path of the file names the part. The deepest folder decides. -1 if nowhere."""
        return max((file.rfind(each) for each in self.files), default=-1)


class SettingHistory(NamedTuple):
    """The releases of vLLM that have a setting."""

    versions: str
    """A range, such as `>=0.12`."""
    instead: str
    """The setting of the other releases. Empty if they have none."""


class Table(NamedTuple):
    """The content of the file."""

    causes: tuple[KnownCause, ...]
    parts: tuple[Part, ...]
    settings: dict[str, SettingHistory]
    texts: dict[str, Any]


_LISTS: Final = ("texts", "raised_in", "not_raised_in")
_FORMS: Final[dict[str, dict[str, type]]] = {
    "cause": {
        **dict.fromkeys(("name", "source", "title", "phase", "advice"), str),
        **dict.fromkeys(("tags", *_LISTS), list),
    },
    "part": {"cause": str, "files": list},
    "setting": {"versions": str, "instead": str},
}
"""The members that each kind of mapping may have, and their types."""
_WHERE: Final = ("hint", "end", "wait")
_TRAITS: Final = ("placed", "general", "weak", "logged", "memory", "kernel")
TAGS: Final = frozenset((*_WHERE, *_TRAITS))


def read_table(text: str) -> Table:
    """Reads the text of the file.

    Raises:
        ValueError: it has another form than `_FORMS`. The message names the entry.
    """
    import yaml  # only after a failure, and in `explain`

    data = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    causes: dict[str, KnownCause] = {}
    parts: list[Part] = []
    for entry in data["causes"]:
        known = _read_cause(entry)
        if known.name in causes:
            raise ValueError(f"known_causes.yaml: {known.name} occurs twice")
        causes[known.name] = known
    for entry in data["parts"]:
        _check("part", entry)
        parts.append(Part(tuple(entry["files"]), causes[entry["cause"]]))
    settings: dict[str, SettingHistory] = {}
    for name, entry in data["settings"].items():
        _check("setting", entry)
        settings[name] = SettingHistory(entry["versions"], entry.get("instead", ""))
    return Table(tuple(causes.values()), tuple(parts), settings, data["texts"])


def _read_cause(entry: Any) -> KnownCause:
    _check("cause", entry)
    of_tuples = ("tags", *_LISTS)
    fields: dict[str, Any] = {name: value for name, value in entry.items() if name not in of_tuples}
    is_complete = fields.keys() >= {"name", "title", "advice"}
    if not is_complete or not TAGS.issuperset(entry.get("tags", ())):
        raise ValueError(f"known_causes.yaml: {entry} needs name, title, advice, and may have the tags {sorted(TAGS)}")
    fields.update({name: tuple(entry[name]) for name in _LISTS if name in entry})
    fields["tags"] = frozenset(entry.get("tags", ()))
    return KnownCause(**fields)


def _check(kind: str, entry: Any) -> Any:
    """Returns the entry. Raises ValueError if a member is unknown, or of another type."""
    form = _FORMS[kind]
    has_form = isinstance(entry, dict) and all(isinstance(entry[name], form.get(name, ())) for name in entry)
    if not has_form:
        raise ValueError(f"known_causes.yaml: {entry} is no {kind} with only {', '.join(form)}")
    texts = chain.from_iterable(value for value in entry.values() if isinstance(value, list))
    if not all(isinstance(each, str) for each in texts):
        raise ValueError(f"known_causes.yaml: a value in {entry} needs quotes")
    return entry


_TABLE: Final = read_table(Path(__file__).with_name("known_causes.yaml").read_text(encoding="utf-8"))
PARTS: Final = _TABLE.parts
"""The frame that raised an exception decides on its part, then outer frames. If two parts match a frame, the
first decides."""
SETTINGS: Final = _TABLE.settings
"""Setting -> the releases of vLLM that have it. Other settings of advice are in all releases."""
LISTS: Final = _TABLE.texts
"""Name -> texts, or name -> value -> texts."""
KNOWN: Final = tuple(known for known in _TABLE.causes if known.source)
"""All causes with texts, in the order of comparison. More general causes come later."""
OWN: Final = tuple(known for known in _TABLE.causes if not known.source)
"""The causes that are named in `StartupError.cause`. They are not searched for in logs."""
BY_NAME: Final = {known.name: known for known in (*OWN, *KNOWN)}
BY_CODE: Final = {known.code: known for known in BY_NAME.values()}
"""Code -> known cause."""
OWN_FAULT: Final = BY_NAME[OWN_FAULT_CAUSE]
FORKED_DRIVER: Final = BY_NAME["cuda-fork"]
SETTING_REFUSED: Final = BY_NAME["setting-refused"]
"""Used for an exception that recommends or refuses a setting, which the digest names. It has no texts."""
ERROR_IN_CODE: Final = BY_NAME["error-in-code"]
"""Used for an exception out of vLLM's files that matches no other cause."""
PLUGIN_FAILED: Final = BY_NAME["plugin-failed"]
"""Used for an exception out of a plugin's files that matches no other cause. It has no texts."""
NOT_IN_LOG: Final = BY_NAME["cause-not-in-log"]
"""Used if no other cause is found."""
START_NOT_FINISHED: Final = BY_NAME["start-not-finished"]
"""Used for a log that ends during the start, and shows no error. It has no texts."""
STOPPED: Final = BY_NAME["stopped"]
"""Counts only if nothing failed before the signal. Therefore the text alone does not show this cause."""


def is_wrapper(file: str) -> bool:
    """Whether functions of this file only call others, so that its frames do not say what failed."""
    return any(each in file for each in LISTS["wrappers"])


def is_of_vllm(file: str) -> bool:
    """Whether this file belongs to vLLM, installed or as source code."""
    path = f"/{file.rpartition('-packages/')[2]}"
    return "/vllm/" in path and "/lib/python3" not in path and not is_of_plugin(file)


def is_of_plugin(file: str) -> bool:
    """Whether this file belongs to a plugin of vLLM, whose parts have the names of vLLM's."""
    return _PLUGIN.search(f"/{file.rpartition('-packages/')[2]}") is not None


def without_guesses(text: str) -> str:
    """The text before a list of possible causes, such as Ray's, which is no evidence of any of them."""
    starts = [text.find(each) for each in LISTS["guesses"]]
    end = min((start for start in starts if start >= 0), default=len(text))
    return text[:end]


def parts_of(file: str) -> list[Part]:
    """The parts that the path of a file names, that of the deepest folder first."""
    named = (part for part in PARTS if part.depth(file) >= 0)
    return sorted(named, key=lambda part: -part.depth(file))


@cache
def _index() -> tuple[dict[str, list[_Text]], list[_Text]]:
    """The known texts by a whole word in them, and those without one. Most lines have none of the words."""
    by_word: dict[str, list[_Text]] = {}
    others: list[_Text] = []
    pairs = ((known, pattern) for known in KNOWN for pattern in known.patterns)
    for number, (known, pattern) in enumerate(pairs):
        text = _Text(number, known, pattern)
        words = [word for part in pattern.parts for word in _whole_words(part)]
        if words:
            longest = max(words, key=len)
            by_word.setdefault(longest, []).append(text)
        else:
            others.append(text)
    return by_word, others


def _whole_words(part: str) -> Iterator[str]:
    """The words that stay words in any text with this part."""
    return (each[0] for each in _WORD.finditer(part) if each.start() > 0 and each.end() < len(part))


def known_in(text: str) -> list[KnownCause]:
    """The causes that have a text in this line, in the order of comparison."""
    by_word, others = _index()
    text = without_guesses(text)
    words = by_word.keys() & _WORD.findall(text)
    texts = chain(others, *(by_word[word] for word in words))
    found = [each for each in texts if each.pattern.longest in text and each.pattern.matches(text)]
    found.sort(key=itemgetter(0))
    return [*dict.fromkeys(each.known for each in found)]
