"""The help of `serve`: flags by group, and on request those that the embedded engine does not honour."""

import json
from collections.abc import Iterable
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

import click

from startup.config import StartupConfig
from vllm_cli.flags.byte_size import ByteSize, spell_size
from vllm_cli.flags.flag import Flag, HonouredFlag, Shape
from vllm_cli.flags.hinted import HINTED
from vllm_cli.flags.honoured import GROUPS
from vllm_cli.flags.refused import REFUSED
from vllm_cli.serve.help_topic import find_topic


def write_groups(formatter: click.HelpFormatter) -> None:
    """The honoured flags with their meaning."""
    for title, flags in GROUPS.items():
        _write_honoured(formatter, title, flags)
    with formatter.section("Help"):
        rows = [
            ("-h, --help", "Show this."),
            ("--help=all|GROUP|WORD", "Show every flag, a group, or those with WORD."),
        ]
        formatter.write_dl(rows, col_max=34)


def write_topic(formatter: click.HelpFormatter, topic: str) -> None:
    """What `--help=TOPIC` is about (`help_topic`)."""
    found = find_topic(topic)
    for title, flags in GROUPS.items():
        _write_honoured(formatter, title, [flag for flag in flags if flag in found.flags])
    for reason, hinted in HINTED.items():
        _write_names(formatter, f"Accepted, without effect: {reason}", [flag for flag in hinted if flag in found.flags])
    for request, refused in REFUSED.items():
        _write_names(
            formatter, f"With --engine vllm only: {request}", [flag for flag in refused if flag in found.flags]
        )
    if found.is_single:
        _write_facts(formatter, found.flags[0], found.also)


def default_of(flag: HonouredFlag) -> Any:
    """The default that the flag's field declares, None where there is nothing to tell."""
    if not flag.fields:
        return None
    section, _, name = flag.fields[0].rpartition(".")
    owner = get_type_hints(StartupConfig)[section] if section else StartupConfig
    default = next(field.default for field in fields(owner) if field.name == name)
    return None if default is MISSING else default


def _write_honoured(formatter: click.HelpFormatter, title: str, flags: Iterable[HonouredFlag]) -> None:
    rows = [(_spelling(flag), _meaning(flag)) for flag in flags]
    if rows:
        with formatter.section(title):
            formatter.write_dl(rows, col_max=34)


def _write_facts(formatter: click.HelpFormatter, flag: Flag, also: Iterable[str]) -> None:
    """What the line of a flag does not tell."""
    facts = [("Also written", ", ".join(flag.aliases)), ("In a --config file", flag.name.removeprefix("--"))]
    if isinstance(flag, HonouredFlag) and flag.variable is not None:
        facts.append(("Environment variable", flag.variable.name))
    if flag.harmless:
        facts.append(("Accepted with", ", ".join(flag.harmless)))
    facts.append(("See also", ", ".join(also)))
    with formatter.section(flag.name):
        formatter.write_dl([(name, fact) for name, fact in facts if fact])


def _write_names(formatter: click.HelpFormatter, title: str, flags: Iterable[Flag]) -> None:
    rows = [", ".join(flag.names) for flag in flags]
    if rows:
        with formatter.section(title):
            formatter.write("".join(f"  {row}\n" for row in rows))


def _spelling(flag: HonouredFlag) -> str:
    if flag.shape is Shape.SWITCH:
        return f"--[no-]{flag.name.removeprefix('--')}"
    return f"{', '.join(flag.names)} {flag.metavar or _type_name(flag.type)}"


def _type_name(type_: click.ParamType[Any] | None) -> str:
    if isinstance(type_, click.Choice):
        return "|".join(type_.choices)
    return (type_.name if type_ else "text").upper()


def _meaning(flag: HonouredFlag) -> str:
    default = default_of(flag)
    if default in (None, False, "", ()):
        return flag.help
    if flag.shape is Shape.SWITCH:
        return f"{flag.help} [on]"
    return f"{flag.help} [{_spell_default(flag, default)}]"


def _spell_default(flag: HonouredFlag, default: Any) -> str:
    if isinstance(flag.type, ByteSize):
        return spell_size(default)
    if isinstance(default, tuple):
        return json.dumps(default)
    return f"{default:g}" if isinstance(default, float) else str(default)
