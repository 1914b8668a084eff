"""Screens flags: those without effect in the embedded engine, and secrets. Shows notices or raises errors.

Recommends safer places for keys and tokens, and keeps them out of files and children's command lines.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

import click

from base.machine.command_line import is_visible
from envs.redaction import hide_in_arguments
from envs.registry import env, unknown_variables
from startup.arguments.errors import InputError
from startup.arguments.supported import MODEL
from startup.arguments.table import IGNORE_REASONS, REJECTED_FEATURES
from startup.imports.torch_environment import has_gpu
from startup.settings.flag import Flag
from startup.settings.serve_arguments import NO_VALUE, CommandLine, ParsedOption


def reject_greedy(parts: Iterable[ParsedOption], line: CommandLine) -> None:
    """Raises an InputError if a list flag may have taken MODEL as one of its values."""
    lists = (part for part in parts if part.flag and part.flag.nargs == "+")
    greedy = [part.name for part in lists if len(part.values) > 1]
    if greedy and not line.others and line.last(MODEL.name) is None:
        raise InputError(
            f"MODEL must come before {greedy[-1]}, which takes every argument that follows. "
            f"For the default model, write {greedy[-1]} once for each value."
        )


def unsupported_faults(options: Iterable[ParsedOption]) -> Iterator[str]:
    """Yields one fault that names each option whose feature the embedded engine lacks."""
    features = ((option, REJECTED_FEATURES.get(option.flag)) for option in options if option.flag)
    rejected = [
        f"{_spell(option)} requests {feature}" for option, feature in features if feature and not _is_neutral(option)
    ]
    if rejected:
        yield f"Not possible with the embedded engine: {'; '.join(rejected)}. Use --engine vllm."


def notices(options: Iterable[ParsedOption]) -> Iterator[str]:
    """Yields a line for each flag that has no effect."""
    for option in options:
        reason = option.flag and (IGNORE_REASONS.get(option.flag) or _hardware_reason(option.flag))
        if reason and not _is_neutral(option):
            yield f"{_spell(option)} has no effect: {reason}."


def _is_neutral(option: ParsedOption) -> bool:
    neutral = (*NO_VALUE, *(option.flag.neutral if option.flag else ()))
    return all(any(_is_same(value, other) for other in neutral) for value in option.values)


def _is_same(value: str, other: str) -> bool:
    try:
        return float(value) == float(other)
    except ValueError:
        return value == other


def _spell(option: ParsedOption) -> str:
    return " ".join(
        option.arguments if option.flag and option.flag.nargs == 0 else hide_in_arguments((option.name, *option.values))
    )


def _hardware_reason(flag: Flag) -> str | None:
    if flag.parameter == "gpu_memory_utilization" and not has_gpu():
        return "there is no GPU, so the KV cache is sized from free memory"
    return None


def reject_references(missing: Sequence[str], place: str = "") -> None:
    """Raises InputError if there are references to variables that are not set."""
    if missing:
        remedy = "set it, or write a default as ${NAME:-default}; $${ stands for ${"
        raise InputError(f"{place}{'; '.join(missing)}: {remedy}.")


def show_notices(notices: Iterable[str], log_format: str) -> None:
    """Writes each notice as one line on standard error. With `json`, the line is a log record in JSON."""
    for notice in notices:
        line = f"Notice: {notice}"
        if log_format == "json":
            from startup.logs.json_lines import format_warning

            line = format_warning(notice)
        click.echo(line, err=True)


def without_flags(parts: Iterable[ParsedOption], names: Collection[str]) -> list[ParsedOption]:
    """Returns the arguments without the flags `names` and their values, however these are spelled."""
    return [part for part in parts if part.flag is None or part.name not in names]


def secrets_as_variables(parts: Iterable[ParsedOption]) -> tuple[list[ParsedOption], dict[str, str]]:
    """Moves secrets from the arguments to variables. Returns the other arguments, and a child's variables.

    Every user can see a child's command line until the child has masked it. Several keys of one flag stay in
    the arguments, because the variable cannot hold them.
    """
    kept: list[ParsedOption] = []
    variables: dict[str, str] = {}
    for part in parts:
        flag = part.flag
        if flag is not None and flag.is_secret and flag.variable is not None and len(part.values) == 1:
            variables[flag.variable.name] = part.values[0]
        else:
            kept.append(part)
    return kept, variables


def argument_notices(parts: Iterable[ParsedOption], line: CommandLine | None = None) -> Iterator[str]:
    """Yields a line for each unknown variable with our prefix, and for each key that is visible or empty.

    `line` has the flags of the embedded engine and of the router. Only they have --api-key-file.
    """
    yield from (f"{unknown}." for unknown in unknown_variables())
    if left_out := env.VCLI_LEAVE_OUT.get():
        from startup.vllm.launch.hooks import names_that_cannot_be_left_out

        if unknown := names_that_cannot_be_left_out(left_out):
            yield f"{env.VCLI_LEAVE_OUT.name}: no hooks or parts of a start that can be left out: {', '.join(unknown)}."
    yield from secret_notices(parts, has_key_file=line is not None)
    if line is not None:
        yield from _empty_key_notices(line.options)


def secret_notices(parts: Iterable[ParsedOption], *, has_key_file: bool) -> Iterator[str]:
    """Yields a line for each flag with a secret. `has_key_file`: whether lines may suggest --api-key-file."""
    secrets: dict[Flag, list[str]] = {}
    for part in parts:
        if part.flag is not None and part.flag.help and part.flag.is_secret and any(part.values):
            secrets.setdefault(part.flag, []).extend(part.values)
    for flag, values in secrets.items():
        state = "is visible to every user" if is_visible(values) else "was visible to every user until now"
        places = [flag.variable.name] if flag.variable is not None else []
        places += ["--api-key-file"] if has_key_file and flag.parameter == "api_key" else []
        yield f"{flag.name} on the command line {state}, and shells record it: prefer {' or '.join(places)}."


def _empty_key_notices(options: Iterable[ParsedOption]) -> Iterator[str]:
    """Yields a line if --api-key is empty, because requests then need no key. A variable may be unset.

    Yields no line if --api-key-file is empty, too. Programs that need a server without keys give both flags.
    """
    empty = {option.name for option in options if not any(option.values)}
    if "--api-key" in empty and "--api-key-file" not in empty:
        yield "--api-key is empty: requests need no key, unless a file or the variable contains one."
