"""Finds the flags of `--help=TOPIC`: all flags, a group, a section of vLLM's help, one flag, or a word."""

from typing import Final, NamedTuple

from envs.suggestion import did_you_mean
from vllm_cli.errors import InputError
from vllm_cli.flags.flag import Flag, SupportedFlag
from vllm_cli.flags.supported import GROUPS
from vllm_cli.flags.table import FLAGS

EVERYTHING: Final = "all"

SECTIONS: Final = {
    "modelconfig": ("Model",),
    "frontend": ("Requests and answers", "HTTP server"),
    "loraconfig": ("LoRA adapters",),
    "cacheconfig": ("Memory and scheduling",),
    "schedulerconfig": ("Memory and scheduling",),
    "multimodalconfig": ("Images",),
    "observabilityconfig": ("Logging",),
    "loggingconfig": ("Logging",),
    "loadconfig": ("Start",),
}
"""Titles in vLLM's help -> the groups that contain most of their flags."""

_SECTION_END: Final = "config"
"""vLLM's other titles consist of a word from the names of their flags and this suffix."""
_OF_CONFIGS: Final = "vllmconfig"
"""vLLM's title for flags whose values are whole configurations."""


class HelpTopic(NamedTuple):
    """Which flags to show, and how."""

    flags: tuple[Flag, ...]
    is_single: bool = False
    """One flag was named: show everything about it."""
    also: tuple[str, ...] = ()
    """Flags with a similar name."""


def find_topic(topic: str) -> HelpTopic:
    """Raises InputError if no flag matches."""
    word = topic.lower().replace("_", "-").strip().lstrip("-")
    if word == EVERYTHING:
        return HelpTopic(FLAGS)
    if grouped := _group_flags(word):
        return HelpTopic(grouped)
    similar = _flags_with(word)
    for flag in similar:
        if word in (name.lstrip("-") for name in flag.names):
            return HelpTopic((flag,), is_single=True, also=tuple(f.name for f in similar if f is not flag))
    if not similar and word.endswith(_SECTION_END):
        similar = _flags_with(_SECTION_END if word == _OF_CONFIGS else word.removesuffix(_SECTION_END))
    if not similar:
        raise _unknown(topic, word)
    return HelpTopic(similar)


def _flags_with(word: str) -> tuple[Flag, ...]:
    """Flags whose names contain the word; `structuredoutputs` is in `--structured-outputs-config`."""
    joined = word.replace("-", "")
    return tuple(flag for flag in FLAGS if any(joined in name.replace("-", "") for name in flag.names))


def _group_flags(word: str) -> tuple[SupportedFlag, ...]:
    """The first word of a group's title is enough."""
    titles = SECTIONS.get(word) or tuple(t for t in GROUPS if word in (t.lower(), t.lower().split()[0]))
    return tuple(flag for title in titles for flag in GROUPS[title])


def _unknown(topic: str, word: str) -> InputError:
    names = [name.lstrip("-") for flag in FLAGS for name in flag.names]
    guess = did_you_mean(word, [*names, *(title.lower() for title in GROUPS)])
    groups = ", ".join(title.split()[0].lower() for title in GROUPS)
    return InputError(
        f"No flag has {topic!r} in its name{guess}; --help=all shows every flag, and the groups are {groups}."
    )
