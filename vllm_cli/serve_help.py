"""The help of `serve`: flags by group, and on request those that the embedded engine does not honour."""

import json
from collections.abc import Iterable
from dataclasses import MISSING, fields
from typing import Any, Final, get_type_hints

import click

from envs.suggestion import did_you_mean
from startup.config import StartupConfig
from vllm_cli.errors import InputError
from vllm_cli.flag import Flag, HonouredFlag, Shape
from vllm_cli.flag_table import FLAGS
from vllm_cli.flags_hinted import HINTED
from vllm_cli.flags_honoured import GROUPS
from vllm_cli.flags_refused import REFUSED

EVERYTHING: Final = "all"
"""The topic of `--help=all`."""


def write_groups(formatter: click.HelpFormatter) -> None:
    """The honoured flags with their meaning."""
    for title, flags in GROUPS.items():
        _write_honoured(formatter, title, flags)
    with formatter.section("Help"):
        formatter.write_dl([("-h, --help", "Show this."), ("--help=all|WORD", "Show every flag, or those with WORD.")])


def write_topic(formatter: click.HelpFormatter, topic: str) -> None:
    """Every flag, or those with a word in their name; raises InputError where there is none."""
    word = "" if topic == EVERYTHING else topic.lower().replace("_", "-")
    found = [flag for flag in FLAGS if any(word in name for name in flag.names)]
    if not found:
        names = [name.removeprefix("--") for flag in FLAGS for name in flag.names]
        raise InputError(f"No flag has {topic!r} in its name{did_you_mean(word, names)}; --help=all shows every flag.")
    for title, flags in GROUPS.items():
        _write_honoured(formatter, title, [flag for flag in flags if flag in found])
    for reason, hinted in HINTED.items():
        _write_names(formatter, f"Accepted, without effect: {reason}", [flag for flag in hinted if flag in found])
    for request, refused in REFUSED.items():
        _write_names(formatter, f"With --engine vllm only: {request}", [flag for flag in refused if flag in found])


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
    return f"{flag.help} [{json.dumps(default) if isinstance(default, tuple) else default}]"
