"""The click command of `serve`, which parses arguments by vLLM's rules and checks all settings."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from base.errors import ConfigError
from base.setting import is_section
from envs.registry import OWN_PREFIX, env, validate_all
from envs.suggestion import changed_word
from startup.arguments.errors import InputError
from startup.arguments.option import FlagOption, complete_model, describe_topic, write_groups
from startup.arguments.param_types import click_type
from startup.arguments.read_arguments import EMPTY_REMEDY, ReadArguments, raise_all, read_arguments
from startup.arguments.screening import (
    argument_notices,
    notices,
    reject_greedy,
    reject_references,
    show_notices,
    unsupported_faults,
)
from startup.arguments.supported import CONFIG, GROUPS, LOG_FORMAT, MODEL, SUPPORTED, VARIABLES, WEB_PAGE
from startup.arguments.table import split_flags
from startup.files.model.model_name import unread_problem
from startup.files.model.model_request import ModelRequest
from startup.settings.config import DEFAULT_MODEL_ID, StartupConfig
from startup.settings.flag import Flag
from startup.settings.serve_arguments import STRAY_REMEDY, CommandLine, LauncherLine, is_stray
from startup.vllm_arguments.options import VllmOptions

if TYPE_CHECKING:
    from startup.vllm_arguments.vllm_line import VllmLine

READ: Final = "vllm_cli.read_start"
"""Key of the `ReadStart` in click's `Context.meta`."""

_SAMPLING: Final = "server.generation.generation_config"
_OVERRIDE: Final = "server.generation.override_generation_config"
_READ_FOR_VLLM: Final = "VLLM_WORKER_MULTIPROC_METHOD"
_NEVER_EMPTY: Final = ("--config", "--generation-config", "--model", "--served-model-name", "--tokenizer")
"""vLLM fails if one of these flags is empty. vLLM and this program ignore any other flag that is empty."""
_MODEL: Final = click.Argument(["model_tag"], required=False, metavar="[MODEL]", shell_complete=complete_model)
_FLAGS: Final = (*GROUPS["Start"], LOG_FORMAT, WEB_PAGE)
"""Flags of a start of vLLM."""
_OPTIONS: Final = tuple(map(FlagOption, SUPPORTED))
PARAMETERS: Final[tuple[click.Parameter, ...]] = (_MODEL, *_OPTIONS)
"""MODEL and the supported flags, for completion."""


class ServeCommand(click.Command):
    """Accepts every flag of `vllm serve`. click only prints help and completes arguments."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Reads all settings, or shows the help."""
        if ctx.resilient_parsing:  # shell completion: no checks, no output
            return super().parse_args(ctx, args)
        early = ctx.obj if isinstance(ctx.obj, ReadArguments) else read_arguments(ctx.obj or LauncherLine(args))
        ctx.meta[READ] = settings_with_notices(early)
        if early.topic is not None:
            click.echo(describe_topic(ctx, early.topic) if early.topic else self.get_help(ctx))
            ctx.exit()
        return []

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the supported flags. `--help=all` shows all other flags, too."""
        write_groups(formatter)


class ReadStart(NamedTuple):
    """What the arguments of `serve` ask for."""

    read: ReadArguments
    start: VllmOptions | StartupConfig | None = None
    """The settings of the start. None if `router.arguments` makes them for several models."""


def read_start(launcher: LauncherLine) -> ReadStart:
    """Reads and checks all settings (`read_arguments`, `settings_of`)."""
    return settings_of(read_arguments(launcher))


def settings_of(read: ReadArguments) -> ReadStart:
    """Checks all settings. Flags have precedence over variables, and both over the `--config` file.

    Raises ClickException if `serve` rejects the arguments.
    """
    if read.vllm is not None:
        return ReadStart(read, _options_for_vllm(read.launcher, read.vllm))
    if read.own is None:
        return ReadStart(read)
    reject_greedy(read.parts, read.own)
    return ReadStart(read, config_of(read.own, unsupported_faults(read.own.options)))


def settings_with_notices(read: ReadArguments) -> ReadStart:
    """Checks all settings (`settings_of`). Shows notices, those of values only if all are valid."""
    line, parts = read.own or read.launcher, [*read.parts]
    if read.vllm is not None:
        for part in read.parts:
            parts += split_flags(part.arguments[1:]) if part.arguments[0] == "--" else ()
    elif read.own is None:
        return settings_of(read)
    log_format = line.value(LOG_FORMAT.name) or env.VCLI_LOG_FORMAT.get()
    show_notices(argument_notices(parts, read.own), log_format)
    found = settings_of(read)
    if read.own is not None:
        show_notices(notices(read.own.options), log_format)
    return found


def parse_start(
    arguments: Sequence[str], name: str = "serve", *, is_quiet: bool = False
) -> VllmOptions | StartupConfig:
    """Returns the settings of a start with these arguments. Raises ClickException if `serve` rejects them.

    `name` is the command's name in usage errors. With `is_quiet`, no notices are shown.
    """
    read = read_arguments(LauncherLine(arguments))
    if read.launcher.has_several_models:
        raise InputError(f"{name} is for one model: name one of them.")
    start = (settings_of if is_quiet else settings_with_notices)(read).start
    if start is None:
        raise InputError("must not have --help or --version")
    return start


def request_of(arguments: Sequence[str], *, command: str) -> ModelRequest:
    """The settings that decide which files `serve` with these arguments reads. Errors name the `command`."""
    start = parse_start(arguments, command)
    if isinstance(start, StartupConfig):
        return ModelRequest.of_start(start)
    return start.line.request


def _options_for_vllm(launcher: LauncherLine, line: "VllmLine") -> VllmOptions:
    # vLLM may accept further values of all other variables.
    raise_all(error for error in validate_all() if error.name.startswith((OWN_PREFIX, _READ_FOR_VLLM)))
    if line.config is not None:  # vLLM would read a reference as plain text
        reject_references(line.config.refused, f"{CONFIG.name}: ")
    fields = {path.rpartition(".")[2]: flag for flag in _FLAGS for path in flag.fields}
    values = {field: value for field, flag in fields.items() for value in _values(flag, launcher)}
    return VllmOptions(line=line, start_method=env.VLLM_WORKER_MULTIPROC_METHOD.get(), **values)


def config_of(line: CommandLine, further_faults: Iterable[str] = ()) -> StartupConfig:
    """The configuration of the embedded engine. Raises ClickException or ConfigError with all faults."""
    _reject_second_model(line)
    faults: list[click.ClickException] = [*map(InputError, (*line.faults, *further_faults))]
    if not faults:  # otherwise an argument may be the value of an unknown flag
        _reject_faulty_arguments(line)
    values: dict[str, Any] = {path: variable.get() for path, variable in VARIABLES.items()}
    faults += _add_values(values, line)
    if line.others:
        values |= dict.fromkeys(MODEL.fields, line.others[0])
    faults += _unread_models(values)
    if values["server.served_model_names"] is None:
        values["server.served_model_names"] = (values["model.model"] or DEFAULT_MODEL_ID,)
    if values["model.model"] in (None, DEFAULT_MODEL_ID) and values[_SAMPLING] is None:
        # At a temperature of 1, half of the default model's answers are nonsense.
        values[_OVERRIDE] = {"temperature": 0.0} | (values[_OVERRIDE] or {})
    out_of_range: list[ConfigError] = []
    config: StartupConfig | None = _build(StartupConfig, values, out_of_range)
    if config is not None and not faults:
        return config
    places = {each.name: each.where for each in line.options if each.where}
    if not faults and len(out_of_range) == 1 and out_of_range[0].option not in places:
        raise out_of_range[0]
    for err in out_of_range:
        faults.append(InputError(f"{places.get(err.option, err.option)}{str(err).removeprefix(err.option)}"))
    if len(faults) == 1:
        raise faults[0]
    raise InputError("\nError: ".join(fault.format_message() for fault in faults))


def _reject_second_model(line: CommandLine) -> None:
    for each in line.options if line.others else ():
        if each.name == MODEL.name and not each.where:
            text = f"MODEL is given twice, as {line.others[0]} and by --model {each.text}"
            raise InputError(f"{text}: leave --model out.")


def _add_values(values: dict[str, Any], line: CommandLine) -> Iterator[click.ClickException]:
    """Adds the value of each flag to `values`. Yields an error for each value that cannot be converted."""
    by_name = {each.name: each for each in line.options}
    for option in _OPTIONS:
        try:
            values.update(dict.fromkeys(option.flag.fields, option.value_of(by_name.get(option.flag.name))))
        except click.BadParameter as err:
            yield err


def _unread_models(values: Mapping[str, Any]) -> Iterator[click.ClickException]:
    """Yields an error for a model or tokenizer that only vLLM or another program reads."""
    for option, name in (("MODEL", values["model.model"]), ("--tokenizer", values["model.tokenizer"])):
        if name is not None and (problem := unread_problem(name)) is not None:
            yield InputError(f"{option} {name} {problem}.")


def _reject_faulty_arguments(line: CommandLine) -> None:
    if (stray := next(filter(is_stray, line.others), None)) is not None:
        raise InputError(f"unexpected argument {stray!r}: {STRAY_REMEDY}.")
    for argument in line.others[1:]:
        if (problem := changed_word(argument)) is not None:
            raise InputError(f"unexpected argument {argument!r} {problem}.")
    if len(line.others) > 1:
        text = f"Got unexpected extra arguments ({' '.join(line.others[1:])})"
        raise click.UsageError(text, click.get_current_context(silent=True))
    for each in line.options:
        if each.name in _NEVER_EMPTY and "" in each.values:
            raise InputError(f"{each.name} is empty: {EMPTY_REMEDY}.")


def _build(config: Any, values: Mapping[str, Any], faults: list[ConfigError], prefix: str = "") -> Any:
    """The configuration made of these values. None if a value is not valid: `faults` gets the errors."""
    arguments = {}
    num_before = len(faults)
    for field in fields(config):
        path = f"{prefix}{field.name}"
        if is_section(field):
            arguments[field.name] = _build(field.type, values, faults, f"{path}.")
        elif values.get(path) is not None:
            arguments[field.name] = values[path]
    if len(faults) > num_before:
        return None
    try:
        return config(**arguments)
    except ConfigError as err:
        faults += [err, *err.others]
        return None


def _values(flag: Flag, launcher: LauncherLine) -> Iterator[Any]:
    """Yields the converted value of a flag or else of its variable. Yields nothing if there is none."""
    option = launcher.last(flag.name)
    value: Any = None if option is None else option.is_on if flag.nargs == 0 else option.text
    if value in (None, "") and flag.variable is not None and flag.is_set:
        value = flag.variable.get()
    if value is None:
        return
    try:
        yield value if (kind := click_type(flag)) is None else kind.convert(value, None, None)
    except click.BadParameter as err:
        raise InputError(f"{flag.name}: {err.message}") from err
