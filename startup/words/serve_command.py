"""The click command of `serve`, which parses words by vLLM's rules and checks all settings."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from typing import Any, Final

import click

from base.errors import ConfigError
from base.setting import is_section
from envs.registry import OWN_PREFIX, env, unknown_variables, validate_all
from envs.variable import EnvError
from startup.files.model.gguf import find_gguf, has_llama_server
from startup.files.model.request import ModelRequest
from startup.settings.config import DEFAULT_MODEL_ID, StartupConfig, VllmOptions
from startup.settings.serve_words import (
    LAUNCHER_FLAGS,
    OMNI,
    STRAY_REMEDY,
    has_several_models,
    help_topic,
    is_behind_router,
    is_flag_like,
    is_stray,
    repeated_words,
    split,
)
from startup.words.arguments import Arguments, read_config_file, reject_references
from startup.words.engine_choice import choose_engine, vllm_options
from startup.words.errors import InputError
from startup.words.flag import Shape, SupportedFlag
from startup.words.help import write_groups, write_topic
from startup.words.option import FlagOption, complete_model
from startup.words.screening import notices, reject_unsupported, show_notices
from startup.words.secret_flags import empty_key_notices, secret_notices
from startup.words.supported import CONFIG, GROUPS, LOG_FORMAT, SUPPORTED, VARIABLES
from startup.words.table import reject_retired, split_flags

VLLM: Final = "vllm_cli.vllm_options"
"""Key of the settings of a vLLM start in click's `Context.meta`."""
CONFIG_OF_START: Final = "vllm_cli.startup_config"
"""Key of the configuration of an embedded engine's start in click's `Context.meta`."""
WORDS: Final = "vllm_cli.words"
"""Key of the words after `serve` in click's `Context.meta`. For llama-server: MODEL first, no `--config`."""
LLAMA_SERVER: Final = "vllm_cli.llama_server"
"""Key in click's `Context.meta`. Its value is True if llama-server serves the GGUF model behind a router."""

_SAMPLING: Final = "server.generation.generation_config"
_OVERRIDE: Final = "server.generation.override_generation_config"
_READ_FOR_VLLM: Final = "VLLM_WORKER_MULTIPROC_METHOD"


class ServeCommand(click.Command):
    """Accepts every flag of `vllm serve`. click converts and completes the supported flags."""

    is_quiet = False
    """Whether notices are left out."""
    may_be_llama_servers = True
    """Whether llama-server may serve a GGUF model."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Reads all settings. Flags have precedence over variables, and both over the `--config` file."""
        if ctx.resilient_parsing:  # shell completion: no checks, no output
            return super().parse_args(ctx, args)
        ctx.meta[WORDS] = tuple(args)
        reject_repetition(args)
        if args and not args[0].strip():
            raise InputError(f"MODEL is empty: {_EMPTY_REMEDY}.")
        reject_retired(given.flag for given in split(args, LAUNCHER_FLAGS.get))
        is_router = has_several_models(args)  # `router.words` reads the words of a router
        if not is_router:
            _reject_flags_of_several(args)
        if not is_router and choose_engine(args, is_gguf=self._is_gguf(args)) == "vllm":
            ctx.meta[VLLM] = self._read_for_vllm(ctx, args)
            return []
        if (topic := help_topic(args)) is not None:
            click.echo(self._help_about(ctx, topic))
            ctx.exit()
        _raise_all(validate_all())
        if is_router:
            return []
        if OMNI in args:  # before the flags of vllm-omni, which are not known here
            reject_unsupported(Arguments.parse((OMNI,)).flags.values())
        given = Arguments.parse(args)
        in_file = _read_file(given)
        if (model := self._gguf_of(merged := given.over(in_file))) is not None:
            merged.flags.pop("--model", None)
            ctx.meta.update({WORDS: (model, *merged.flag_words()), LLAMA_SERVER: True})
            return []
        log_format = _screen(args, given, in_file, is_quiet=self.is_quiet)
        with _naming_places(given, in_file):
            ctx.params = read_settings(ctx, given, in_file)
            ctx.meta[CONFIG_OF_START] = build_startup_config(ctx.params)
        if not self.is_quiet:
            show_notices(notices((in_file.flags | given.flags).values()), log_format)  # of values that are valid
        return []

    def _read_for_vllm(self, ctx: click.Context, args: list[str]) -> VllmOptions:
        _raise_all(error for error in validate_all() if _is_read_for_vllm(error.name))
        options = vllm_options(ctx, args)
        _reject_faults_of_file(options.words)
        if not self.is_quiet:
            secrets = secret_notices(options.words, has_key_file=False)
            show_notices((*unknown_variable_notices(), *secrets), options.log_format)
        return options

    def _is_gguf(self, args: Sequence[str]) -> bool:
        """Whether llama-server can serve MODEL. False for words that only vLLM knows."""
        if not has_llama_server():
            return False
        with suppress(InputError):
            given = Arguments.parse(args)
            return self._gguf_of(given.over(_read_file(given))) is not None
        return False

    def _gguf_of(self, given: Arguments) -> str | None:
        """MODEL if llama-server can serve it, else None."""
        model = given.positionals[0] if given.positionals else given.last_value("--model")
        if not self.may_be_llama_servers or model is None or find_gguf(model) is None or not has_llama_server():
            return None
        return model

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the supported flags. `--help=all` shows all other flags, too."""
        write_groups(formatter)

    def _help_about(self, ctx: click.Context, topic: str) -> str:
        if not topic:
            return self.get_help(ctx)
        formatter = ctx.make_formatter()
        write_topic(formatter, topic)
        return formatter.getvalue().strip("\n")


_NEVER_EMPTY: Final = ("--config", "--generation-config", "--model", "--served-model-name", "--tokenizer")
"""vLLM fails if one of these flags is empty. vLLM and this program ignore any other flag that is empty."""
_EMPTY_REMEDY: Final = "set the variable that stands in its place, or leave the word out for the default"

_OF_ONE_MODEL: Final = {"--max-wait", "--max-waiting"}
"""Flags for several models that also apply to a single model behind a router."""
_MODEL: Final = click.Argument(["model_tag"], required=False, metavar="[MODEL]", shell_complete=complete_model)


def serve_parameters() -> list[click.Parameter]:
    """MODEL and the supported flags, as click's parameters."""
    return [_MODEL, *map(FlagOption, SUPPORTED)]


def parse_start(words: Sequence[str], name: str = "serve", *, is_quiet: bool = False) -> VllmOptions | StartupConfig:
    """Returns the settings of a start with these words. Raises ClickException if `serve` rejects the words.

    `name` is the command's name in usage errors. With `is_quiet`, no notices are shown.
    """
    reject_repetition(words)
    if has_several_models(words):
        raise InputError(f"{name} is for one model: name one of them.")
    with read_words(words, name, is_quiet=is_quiet, may_be_llama_servers=False) as ctx:
        return start_of(ctx)


def read_words(words: Sequence[str], name: str, *, is_quiet: bool, may_be_llama_servers: bool = True) -> click.Context:
    """click's context of `serve` with these words. The context's metadata has the settings."""
    serve = ServeCommand(name="serve", params=serve_parameters())
    serve.is_quiet = is_quiet
    serve.may_be_llama_servers = may_be_llama_servers
    return serve.make_context(name, list(words))


def start_of(ctx: click.Context) -> VllmOptions | StartupConfig:
    """The settings of the start. The context's words must not start a router."""
    start: VllmOptions | StartupConfig = ctx.meta.get(VLLM) or ctx.meta[CONFIG_OF_START]
    return start


def request_of(words: Sequence[str], *, command: str) -> ModelRequest:
    """The settings that decide which files `serve` with these words reads. Errors name the `command`."""
    start = parse_start(words, command)
    if isinstance(start, StartupConfig):
        return ModelRequest.of_start(start)
    from startup.vllm_words.command_line import CommandLine

    return CommandLine.of(start.words).request


def read_settings(ctx: click.Context, given: Arguments, in_file: Arguments) -> dict[str, Any]:
    """The converted values of all settings that the command line, a variable or the file gives."""
    if (stray := next(filter(is_stray, given.positionals), None)) is not None:
        raise InputError(f"unexpected word {stray!r}: {STRAY_REMEDY}.")
    if len(given.positionals) > 1:
        raise click.UsageError(f"Got unexpected extra arguments ({' '.join(given.positionals[1:])})", ctx)
    for each in (in_file.flags | given.flags).values():
        if each.flag.name in _NEVER_EMPTY and "" in each.values:
            raise InputError(f"{each.flag.name} is empty: {_EMPTY_REMEDY}.")
    settings = {}
    for option in ctx.command.params:
        if isinstance(option, FlagOption) and (value := option.find_value(given, in_file)) is not None:
            settings[option.flag.parameter] = option.type_cast_value(ctx, value)
    if given.positionals:
        settings["model"] = given.positionals[0]
    return settings


@contextmanager
def _naming_places(given: Arguments, in_file: Arguments) -> Iterator[None]:
    """Makes errors name the place of a faulty value in the `--config` file, such as `serve.yaml: port`."""

    def place_of(name: str) -> str | None:
        if name not in in_file.flags or name in given.flags:
            return None
        variable = getattr(in_file.flags[name].flag, "variable", None)
        return f"{in_file.file}: {name.removeprefix('--')}" if variable is None or variable.raw is None else None

    try:
        yield
    except click.BadParameter as err:
        if isinstance(err.param, FlagOption):
            err.param_hint = place_of(err.param.flag.name)
        raise
    except ConfigError as err:
        if (place := place_of(err.option)) is None:
            raise
        raise InputError(f"{place}{str(err).removeprefix(err.option)}") from err


def _read_file(given: Arguments) -> Arguments:
    """The settings of the `--config` file. Raises InputError if it is not valid."""
    path = given.last_value(CONFIG.name)
    return read_config_file(path) if path else Arguments()


def _raise_all(errors: Iterable[EnvError]) -> None:
    if lines := list(map(str, errors)):
        raise InputError("\nError: ".join(lines))


def _reject_faults_of_file(words: Sequence[str]) -> None:
    """Rejects former flags in a `--config` file, and references that vLLM would read as plain text."""
    if CONFIG.name not in words:
        return
    from startup.vllm_words.command_line import CommandLine

    if (file := CommandLine.of(words).config) is not None:
        reject_references(file.refused, f"{CONFIG.name}: ")
        reject_retired((f"--{name}" for name in file.settings), f"{CONFIG.name} {file.path}: ")


def _is_read_for_vllm(name: str) -> bool:
    """Whether the launcher checks this variable. vLLM may accept further values of all other variables."""
    return name.startswith(OWN_PREFIX) or name == _READ_FOR_VLLM


def unknown_variable_notices() -> Iterator[str]:
    """Yields a line for each unknown variable with our prefix."""
    return (f"{unknown}." for unknown in unknown_variables())


def _reject_flags_of_several(words: Sequence[str]) -> None:
    """Rejects flags of a router if there is no router, and several models that are named after flags."""
    several = {flag.name for flag in GROUPS["Several models"]}
    if is_behind_router(words):
        several -= _OF_ONE_MODEL
    for flag in (each.flag for each in split(words, LAUNCHER_FLAGS.get) if each.flag in several):
        raise InputError(f"{flag} is for several models: name them in a file for --models, or before all flags.")
    given = list(split_flags(words)) if words and is_flag_like(words[0]) else []
    others = [each.words[0] for _, each in given if not each.flag]
    models = [word for word in others if word != "--" and not is_stray(word)]
    has_unknown = any(each.flag and flag is None for flag, each in given)  # the word after it may be its value
    if len(models) > 1 and not has_unknown:
        raise InputError(f"several models must be named before all flags: vllm-cli serve {' '.join(models)} ...")


def reject_repetition(words: Sequence[str]) -> None:
    """Rejects the words of a server's command where MODEL belongs: first, or after flags that are known."""
    begin = 0
    for flag, given in split_flags(words) if words and is_flag_like(words[0]) else ():
        if flag is None:
            break
        begin += len(given.words)
    if repeated := repeated_words(list(words[begin:])):
        why = "the entrypoint of an image has them, too"
        raise InputError(f"the words `{' '.join(repeated)}` stand twice ({why}): leave them out.")


def _screen(words: Sequence[str], given: Arguments, in_file: Arguments, *, is_quiet: bool) -> str:
    """Rejects unsupported flags, and shows notices. Returns the format of log lines."""
    has_model = given.positionals or "--model" in given.flags or "--model" in in_file.flags
    if given.greedy_flag and not has_model:
        raise InputError(
            f"MODEL must come before {given.greedy_flag}, which takes every word that follows. "
            f"For the default model, write {given.greedy_flag} once for each value."
        )
    flags = (in_file.flags | given.flags).values()
    reject_unsupported(flags)
    log_format = next(filter(None, (where.last_value(LOG_FORMAT.name) for where in (given, in_file))), None)
    log_format = log_format or env.VCLI_LOG_FORMAT.get()
    if not is_quiet:
        secrets = secret_notices(words, has_key_file=True)
        show_notices((*unknown_variable_notices(), *secrets, *empty_key_notices(flags)), log_format)
    return log_format


def build_startup_config(settings: Mapping[str, Any]) -> StartupConfig:
    """Builds the configuration from settings named like flags (`max_model_len`). Fills in defaults."""
    values = {path: variable.get() for path, variable in VARIABLES.items()}
    values |= {path: _given_value(flag, settings) for flag in SUPPORTED for path in flag.fields}
    if values["server.served_model_names"] is None:
        values["server.served_model_names"] = (values["model.model"] or DEFAULT_MODEL_ID,)
    if values["model.model"] in (None, DEFAULT_MODEL_ID) and values[_SAMPLING] is None:
        # At a temperature of 1, half of the default model's answers are nonsense.
        values[_OVERRIDE] = {"temperature": 0.0} | (values[_OVERRIDE] or {})
    config: StartupConfig = _build(StartupConfig, values)
    return config


def _given_value(flag: SupportedFlag, settings: Mapping[str, Any]) -> Any:
    value = settings.get(flag.parameter)
    if flag.shape is Shape.LIST:
        value = tuple(filter(None, value or ()))
        return value or None
    return None if value == "" else value


def _build(config: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    arguments = {}
    for field in fields(config):
        path = f"{prefix}{field.name}"
        if is_section(field):
            arguments[field.name] = _build(field.type, values, f"{path}.")
        elif values.get(path) is not None:
            arguments[field.name] = values[path]
    return config(**arguments)
