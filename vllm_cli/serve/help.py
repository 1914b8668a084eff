"""The help of `serve`: supported flags by group; on request also ignored and rejected ones."""

import json
from collections.abc import Iterable

import click

from vllm_cli.flags.byte_size import ByteSize, spell_size
from vllm_cli.flags.flag import Flag, Shape, SupportedFlag
from vllm_cli.flags.ignored import IGNORED
from vllm_cli.flags.rejected import REJECTED
from vllm_cli.flags.supported import GROUPS
from vllm_cli.serve.help_topic import find_topic


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
