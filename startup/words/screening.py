"""Screens flags that have no effect in the embedded engine. Shows notices or raises errors for them."""

from collections.abc import Iterable, Iterator

import click

from envs.redaction import hide_in_words
from startup.imports.torch_environment import has_gpu
from startup.settings.flag import NO_VALUE, Flag, GivenFlag
from startup.words.errors import InputError
from startup.words.table import IGNORE_REASONS, REJECTED_FEATURES


def reject_unsupported(given_flags: Iterable[GivenFlag]) -> None:
    """Raises an InputError that names each given flag whose feature the embedded engine lacks."""
    rejected = [given for given in given_flags if given.flag in REJECTED_FEATURES and not _is_neutral(given)]
    if rejected:
        requests = "; ".join(f"{_spell(given)} requests {REJECTED_FEATURES[given.flag]}" for given in rejected)
        raise InputError(f"Not possible with the embedded engine: {requests}. Use --engine vllm.")


def notices(given_flags: Iterable[GivenFlag]) -> Iterator[str]:
    """Yields a line for each flag that has no effect."""
    for given in given_flags:
        reason = IGNORE_REASONS.get(given.flag) or _hardware_reason(given.flag)
        if reason and not _is_neutral(given):
            yield f"{_spell(given)} has no effect: {reason}."


def _is_neutral(given: GivenFlag) -> bool:
    neutral = (*NO_VALUE, *given.flag.neutral)
    return all(any(_is_same(value, other) for other in neutral) for value in given.values)


def _is_same(value: str, other: str) -> bool:
    try:
        return float(value) == float(other)
    except ValueError:
        return value == other


def _spell(given: GivenFlag) -> str:
    return " ".join(given.words if given.flag.nargs == 0 else hide_in_words((given.name, *given.values)))


def _hardware_reason(flag: Flag) -> str | None:
    if flag.parameter == "gpu_memory_utilization" and not has_gpu():
        return "there is no GPU, so the KV cache is sized from free memory"
    return None


def show_notices(notices: Iterable[str], log_format: str) -> None:
    """Writes each notice as one line on standard error. With `json`, the line is a log record in JSON."""
    for notice in notices:
        line = f"Notice: {notice}"
        if log_format == "json":
            from startup.logs.json_lines import format_warning

            line = format_warning(notice)
        click.echo(line, err=True)
