"""The help of `serve`: supported flags by group; on request also ignored and rejected ones."""

import json
from collections.abc import Iterable
from typing import Final, NamedTuple

import click

from envs.suggestion import did_you_mean
from vllm_cli.errors import InputError
from vllm_cli.flags.flag import Flag, Shape, SupportedFlag
from vllm_cli.flags.param_types import ByteSize, spell_size
from vllm_cli.flags.supported import GROUPS
from vllm_cli.flags.table import FLAGS
from vllm_cli.flags.unsupported import IGNORED, REJECTED


def write_groups(formatter: click.HelpFormatter) -> None:
    """The supported flags with their meaning."""
    for title, flags in GROUPS.items():
        _write_supported(formatter, title, flags)
    with formatter.section("Help"):
        rows = [
            ("-h, --help", "Show this help."),
            ("--help=all|GROUP|WORD", "Show every flag, a group, or the flags that contain WORD."),
        ]
        formatter.write_dl(rows, col_max=34)


def write_topic(formatter: click.HelpFormatter, topic: str) -> None:
    """The flags of `--help=TOPIC` (`help_topic`)."""
    found = find_topic(topic)
    for title, flags in GROUPS.items():
        _write_supported(formatter, title, [flag for flag in flags if flag in found.flags])
    for reason, ignored in IGNORED.items():
        _write_names(formatter, f"Accepted without effect: {reason}", [flag for flag in ignored if flag in found.flags])
    for feature, rejected in REJECTED.items():
        names = [flag for flag in rejected if flag in found.flags]
        _write_names(formatter, f"Only with --engine vllm: {feature}", names)
    if found.is_single:
        _write_facts(formatter, found.flags[0], found.also)


def _write_supported(formatter: click.HelpFormatter, title: str, flags: Iterable[SupportedFlag]) -> None:
    rows = [(spell(flag), _meaning(flag)) for flag in flags]
    if rows:
        with formatter.section(title):
            formatter.write_dl(rows, col_max=34)


def _write_facts(formatter: click.HelpFormatter, flag: Flag, also: Iterable[str]) -> None:
    """Facts about a flag beyond its line of help."""
    facts = [("Also written", ", ".join(flag.aliases)), ("In a --config file", flag.name.removeprefix("--"))]
    if isinstance(flag, SupportedFlag) and flag.variable is not None:
        facts.append(("Environment variable", flag.variable.name))
    if flag.neutral:
        facts.append(("Accepted with", ", ".join(flag.neutral)))
    facts.append(("See also", ", ".join(also)))
    with formatter.section(flag.name):
        formatter.write_dl([(name, fact) for name, fact in facts if fact])


def _write_names(formatter: click.HelpFormatter, title: str, flags: Iterable[Flag]) -> None:
    rows = [", ".join(flag.names) for flag in flags]
    if rows:
        with formatter.section(title):
            formatter.write("".join(f"  {row}\n" for row in rows))


def spell(flag: SupportedFlag) -> str:
    """The flag with its metavar."""
    if flag.shape is Shape.SWITCH:
        return f"--[no-]{flag.name.removeprefix('--')}"
    return f"{', '.join(flag.names)} {flag.metavar or _type_name(flag.type)}"


def _type_name(type_: click.ParamType | None) -> str:
    if isinstance(type_, click.Choice):
        return "|".join(type_.choices)
    return (type_.name if type_ else "text").upper()


def _meaning(flag: SupportedFlag) -> str:
    default = spell_default(flag)
    return f"{flag.help} [{default}]" if default else flag.help


def spell_default(flag: SupportedFlag) -> str:
    """The default in the syntax of the flag; empty without one, and for a switch that is off."""
    default = flag.default
    if default is None or default is False or default in ("", ()):
        return ""
    if flag.shape is Shape.SWITCH:
        return "on"
    if isinstance(flag.type, ByteSize):
        return spell_size(default)
    if isinstance(default, tuple):
        return json.dumps(default)
    return f"{default:g}" if isinstance(default, float) else str(default)


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
