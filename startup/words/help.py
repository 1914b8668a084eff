"""The help of `serve`. It shows supported flags by group, and on request ignored and rejected flags."""

import json
from collections.abc import Iterable

import click

from envs.suggestion import did_you_mean
from startup.settings.flag import Flag
from startup.words.errors import InputError
from startup.words.param_types import click_type, spell_size
from startup.words.supported import GROUPS
from startup.words.table import FLAGS, IGNORED, REJECTED


def write_groups(formatter: click.HelpFormatter) -> None:
    """Writes the supported flags by group, with their meaning."""
    for title, flags in GROUPS.items():
        _write_supported(formatter, title, flags)
    with formatter.section("Help"):
        rows = [
            ("-h, --help", "Show this help."),
            ("--help=all|WORD", "Show every flag, or those that contain WORD."),
        ]
        formatter.write_dl(rows, col_max=34)


def describe_topic(ctx: click.Context, topic: str) -> str:
    """The flags for `--help=all` or `--help=WORD` (see `help_topic`)."""
    formatter, found = ctx.make_formatter(), find_flags(topic)
    for title, flags in GROUPS.items():
        _write_supported(formatter, title, [flag for flag in flags if flag in found])
    for reason, ignored in IGNORED.items():
        _write_names(formatter, f"Accepted without effect: {reason}", [flag for flag in ignored if flag in found])
    for feature, rejected in REJECTED.items():
        _write_names(formatter, f"Only with --engine vllm: {feature}", [flag for flag in rejected if flag in found])
    return formatter.getvalue().strip("\n")


def _write_supported(formatter: click.HelpFormatter, title: str, flags: Iterable[Flag]) -> None:
    rows = [
        (spell(flag), f"{flag.help} [{default}]" if (default := spell_default(flag)) else flag.help) for flag in flags
    ]
    if rows:
        with formatter.section(title):
            formatter.write_dl(rows, col_max=34)


def _write_names(formatter: click.HelpFormatter, title: str, flags: Iterable[Flag]) -> None:
    rows = [", ".join(flag.names) for flag in flags]
    if rows:
        with formatter.section(title):
            formatter.write("".join(f"  {row}\n" for row in rows))


def spell(flag: Flag) -> str:
    """The flag with its metavar, as the help shows it."""
    if flag.nargs == 0:
        return f"--[no-]{flag.name.removeprefix('--')}"
    return f"{', '.join(flag.names)} {flag.metavar or _type_name(click_type(flag))}"


def _type_name(type_: click.ParamType | None) -> str:
    if isinstance(type_, click.Choice):
        return "|".join(type_.choices)
    return (type_.name if type_ else "text").upper()


def spell_default(flag: Flag) -> str:
    """The default in the flag's syntax. Empty if the flag has no default or is a switch that is off."""
    default = flag.default
    if default is None or default is False or default in ("", ()):
        return ""
    if flag.nargs == 0:
        return "on"
    if flag.kind == "size":
        return spell_size(default)
    if isinstance(default, tuple):
        return json.dumps(default)
    return f"{default:g}" if isinstance(default, float) else str(default)


def find_flags(topic: str) -> tuple[Flag, ...]:
    """The flags whose names contain the word, or all flags for `all`. Raises InputError if none is found."""
    word = topic.lower().replace("_", "-").strip().lstrip("-")
    if word == "all":
        return FLAGS
    joined = word.replace("-", "")
    found = tuple(flag for flag in FLAGS if any(joined in name.replace("-", "") for name in flag.names))
    if not found:
        guess = did_you_mean(word, [name.lstrip("-") for flag in FLAGS for name in flag.names])
        raise InputError(f"No flag has {topic!r} in its name{guess}. --help=all shows every flag.")
    return found
