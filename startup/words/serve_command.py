"""The click command of `serve`, which parses words by vLLM's rules and checks all settings."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from itertools import chain, dropwhile
from typing import Any, Final, NamedTuple

import click

from base.errors import ConfigError
from base.setting import is_section
from envs.registry import ENGINES, OWN_PREFIX, env, validate_all
from envs.suggestion import changed_word, did_you_mean
from envs.variable import EnvError
from startup.files.model.gguf import find_gguf, has_llama_server, is_read_by_vllm
from startup.files.model.request import ModelRequest
from startup.settings.config import DEFAULT_MODEL_ID, StartupConfig, VllmOptions
from startup.settings.flag import Flag
from startup.settings.serve_words import OMNI, STRAY_REMEDY, Given, ServeWords, help_topic, is_stray, repeated_words
from startup.words.arguments import Arguments, reject_references
from startup.words.errors import InputError
from startup.words.option import FlagOption, complete_model, describe_topic, write_groups
from startup.words.param_types import click_type
from startup.words.screening import notices, reject_unsupported, show_notices, word_notices
from startup.words.supported import CONFIG, ENGINE, GROUPS, LOG_FORMAT, MODEL, SUPPORTED, VARIABLES, WEB_PAGE
from startup.words.table import split_flags, with_flags

READ: Final = "vllm_cli.read_start"
"""Key of the `ReadStart` in click's `Context.meta`."""

_SAMPLING: Final = "server.generation.generation_config"
_OVERRIDE: Final = "server.generation.override_generation_config"
_READ_FOR_VLLM: Final = "VLLM_WORKER_MULTIPROC_METHOD"
_NEVER_EMPTY: Final = ("--config", "--generation-config", "--model", "--served-model-name", "--tokenizer")
"""vLLM fails if one of these flags is empty. vLLM and this program ignore any other flag that is empty."""
_EMPTY_REMEDY: Final = "set the variable that stands in its place, or leave the word out for the default"
_OF_ONE_MODEL: Final = {"--max-wait", "--max-waiting"}
"""Flags for several models that also apply to a single model behind a router."""
_MODEL: Final = click.Argument(["model_tag"], required=False, metavar="[MODEL]", shell_complete=complete_model)
_OPTIONS: Final = tuple(map(FlagOption, SUPPORTED))
PARAMETERS: Final[tuple[click.Parameter, ...]] = (_MODEL, *_OPTIONS)
"""MODEL and the supported flags, for completion."""


class ServeCommand(click.Command):
    """Accepts every flag of `vllm serve`. click only prints help and completes words."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Reads all settings, or shows the help."""
        if ctx.resilient_parsing:  # shell completion: no checks, no output
            return super().parse_args(ctx, args)
        read = ctx.meta[READ] = read_start(ctx.obj or ServeWords(args))
        if read.topic is not None:
            click.echo(describe_topic(ctx, read.topic) if read.topic else self.get_help(ctx))
            ctx.exit()
        return []

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the supported flags. `--help=all` shows all other flags, too."""
        write_groups(formatter)


class ReadStart(NamedTuple):
    """What the words after `serve` ask for."""

    words: tuple[str, ...]
    """The words. For llama-server: MODEL first, no `--config`."""
    start: VllmOptions | StartupConfig | None = None
    """The settings of the start. None if `router.words` reads the words: several models, or llama-server."""
    topic: str | None = None
    """The topic of the help that is asked for instead of a start (`help_topic`)."""


def read_start(launcher: ServeWords, *, is_quiet: bool = False, may_be_llama_servers: bool = True) -> ReadStart:
    """Reads all settings. Flags have precedence over variables, and both over the `--config` file.

    Args:
        is_quiet: whether notices are left out.
        may_be_llama_servers: whether llama-server may serve a GGUF model.

    Raises:
        ClickException: `serve` rejects the words.
    """
    words = launcher.words
    read, parts = ReadStart(tuple(words)), [*with_flags(launcher.pieces)]
    _reject_repetition(parts)
    if words and not words[0].strip():
        raise InputError(f"MODEL is empty: {_EMPTY_REMEDY}.")
    given = model = None
    is_router = launcher.has_several_models
    if not is_router:
        _reject_flags_of_several(launcher, parts)
        if may_be_llama_servers and has_llama_server():
            with suppress(InputError):  # words that only vLLM knows
                given = Arguments.read(parts)
                model = _gguf_of(given)
        if choose_engine(launcher, is_gguf=model is not None) == "vllm":
            return read._replace(start=_read_for_vllm(launcher, parts, is_quiet=is_quiet))
    if (topic := help_topic(words)) is not None:
        return read._replace(topic=topic)
    _raise_all(validate_all())
    if is_router:
        return read
    if OMNI in words:  # before the flags of vllm-omni, which are not known here
        reject_unsupported(Arguments.parse(split_flags((OMNI,))).flags.values())
    given = given or Arguments.read(parts, collects_faults=True)  # not twice, as the file of `--config` may be a pipe
    if model is not None:
        given.flags.pop("--model", None)
        given.positionals = [model]
        return ReadStart(tuple(given.words))
    log_format = _screen(parts, given, is_quiet=is_quiet)
    config = config_of(given)
    if not is_quiet:
        show_notices(notices(given.flags.values()), log_format)  # of values that are valid
    return read._replace(start=config)


def parse_start(words: Sequence[str], name: str = "serve", *, is_quiet: bool = False) -> VllmOptions | StartupConfig:
    """Returns the settings of a start with these words. Raises ClickException if `serve` rejects the words.

    `name` is the command's name in usage errors. With `is_quiet`, no notices are shown.
    """
    given = ServeWords(words)
    if given.has_several_models:
        _reject_repetition(with_flags(given.pieces))
        raise InputError(f"{name} is for one model: name one of them.")
    read = read_start(given, is_quiet=is_quiet, may_be_llama_servers=False)
    if read.start is None:
        raise InputError("must not have --help or --version")
    return read.start


def request_of(words: Sequence[str], *, command: str) -> ModelRequest:
    """The settings that decide which files `serve` with these words reads. Errors name the `command`."""
    start = parse_start(words, command)
    if isinstance(start, StartupConfig):
        return ModelRequest.of_start(start)
    from startup.vllm_words.command_line import CommandLine

    return CommandLine.of(start.words).request


def _read_for_vllm(given: ServeWords, parts: Sequence[Given], *, is_quiet: bool) -> VllmOptions:
    # vLLM may accept further values of all other variables.
    _raise_all(error for error in validate_all() if error.name.startswith((OWN_PREFIX, _READ_FOR_VLLM)))
    options = vllm_options(given)
    _reject_faults_of_file(options.words)
    if not is_quiet:
        after_dashes = (split_flags(each.words[1:]) for each in parts if each.words[0] == "--")
        show_notices(word_notices((*parts, *chain.from_iterable(after_dashes))), options.log_format)
    return options


def _gguf_of(given: Arguments) -> str | None:
    model = given.positionals[0] if given.positionals else given.last_value("--model")
    return model if model is not None and find_gguf(model) is not None else None


def config_of(given: Arguments) -> StartupConfig:
    """The configuration of the embedded engine. Raises ClickException or ConfigError for invalid values."""
    if given.positionals and "--model" in given.flags and not given.place("--model"):
        flagged = given.last_value("--model")
        raise InputError(
            f"MODEL is given twice, as {given.positionals[0]} and by --model {flagged}: leave --model out."
        )
    if not given.faults:  # otherwise a word may be the value of an unknown flag
        _reject_faulty_words(given)
    values: dict[str, Any] = {path: variable.get() for path, variable in VARIABLES.items()}
    faults: list[click.ClickException] = [*map(InputError, given.faults), *_add_values(values, given)]
    if given.positionals:
        values |= dict.fromkeys(MODEL.fields, given.positionals[0])
    if values["server.served_model_names"] is None:
        values["server.served_model_names"] = (values["model.model"] or DEFAULT_MODEL_ID,)
    if values["model.model"] in (None, DEFAULT_MODEL_ID) and values[_SAMPLING] is None:
        # At a temperature of 1, half of the default model's answers are nonsense.
        values[_OVERRIDE] = {"temperature": 0.0} | (values[_OVERRIDE] or {})
    out_of_range: list[ConfigError] = []
    config: StartupConfig | None = _build(StartupConfig, values, out_of_range)
    if config is not None and not faults:
        return config
    if not faults and len(out_of_range) == 1 and not given.place(out_of_range[0].option):
        raise out_of_range[0]
    faults += [InputError(_with_place(err, given)) for err in out_of_range]
    if len(faults) == 1:
        raise faults[0]
    raise InputError("\nError: ".join(fault.format_message() for fault in faults))


def _add_values(values: dict[str, Any], given: Arguments) -> Iterator[click.ClickException]:
    """Adds the value of each flag to `values`. Yields the errors of those that cannot be converted."""
    for option in _OPTIONS:
        try:
            values.update(dict.fromkeys(option.flag.fields, option.value_of(given)))
        except click.BadParameter as err:
            yield err


def _with_place(err: ConfigError, given: Arguments) -> str:
    where = given.place(err.option)
    return f"{where}{str(err).removeprefix(err.option)}" if where else str(err)


def _reject_faulty_words(given: Arguments) -> None:
    if (stray := next(filter(is_stray, given.positionals), None)) is not None:
        raise InputError(f"unexpected word {stray!r}: {STRAY_REMEDY}.")
    for word in given.positionals[1:]:
        if (problem := changed_word(word)) is not None:
            raise InputError(f"unexpected word {word!r} {problem}.")
    if len(given.positionals) > 1:
        text = f"Got unexpected extra arguments ({' '.join(given.positionals[1:])})"
        raise click.UsageError(text, click.get_current_context(silent=True))
    for each in given.flags.values():
        if each.flag.name in _NEVER_EMPTY and "" in each.values:
            raise InputError(f"{each.flag.name} is empty: {_EMPTY_REMEDY}.")


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


def _screen(parts: Sequence[Given], given: Arguments, *, is_quiet: bool) -> str:
    """Rejects unsupported flags, and shows notices. Returns the format of log lines."""
    if given.greedy_flag and not given.positionals and MODEL.name not in given.flags:
        raise InputError(
            f"MODEL must come before {given.greedy_flag}, which takes every word that follows. "
            f"For the default model, write {given.greedy_flag} once for each value."
        )
    try:
        reject_unsupported(given.flags.values())
    except InputError as err:
        given.faults.append(err.message)
    log_format = given.last_value(LOG_FORMAT.name) or env.VCLI_LOG_FORMAT.get()
    if not is_quiet:
        show_notices(word_notices(parts, given.flags), log_format)
    return log_format


def _raise_all(errors: Iterable[EnvError]) -> None:
    if lines := list(map(str, errors)):
        raise InputError("\nError: ".join(lines))


def _reject_faults_of_file(words: Sequence[str]) -> None:
    """Rejects references in a `--config` file, which vLLM would read as plain text."""
    if CONFIG.name not in words:
        return
    from startup.vllm_words.command_line import CommandLine

    if (file := CommandLine.of(words).config) is not None:
        reject_references(file.refused, f"{CONFIG.name}: ")


def _reject_flags_of_several(launcher: ServeWords, parts: Sequence[Given]) -> None:
    """Rejects flags of a router if there is no router, and several models that are named after flags."""
    several = {flag.name for flag in GROUPS["Several models"]}
    if launcher.is_behind_router:
        several -= _OF_ONE_MODEL
    for flag in filter(several.__contains__, launcher.flags):
        raise InputError(f"{flag} is for several models: name them in a file for --models, or before all flags.")
    given = parts if parts and parts[0].flag else ()
    others = [each.words[0] for each in given if not each.flag]
    models = [word for word in others if word != "--" and not is_stray(word)]
    has_unknown = any(each.flag and each.known is None for each in given)  # the word after it may be its value
    is_changed = any(map(changed_word, models))  # a flag with another dash, which later checks explain
    if len(models) > 1 and not has_unknown and not is_changed:
        raise InputError(f"several models must be named before all flags: vllm-cli serve {' '.join(models)} ...")


def _reject_repetition(parts: Iterable[Given]) -> None:
    """Rejects the words of a server's command where MODEL belongs: first, or after flags that are known."""
    rest = dropwhile(lambda part: part.known is not None, parts)
    if repeated := repeated_words([word for part in rest for word in part.words]):
        why = "the entrypoint of an image has them, too"
        raise InputError(f"the words `{' '.join(repeated)}` stand twice ({why}): leave them out.")


_FLAGS: Final = (*GROUPS["Start"], LOG_FORMAT, WEB_PAGE)


def choose_engine(given: ServeWords, *, is_gguf: bool = False) -> str:
    """Returns `embedded` or `vllm`. Raises InputError if another engine is named, or if a value is missing.

    With `is_gguf`, llama-server can serve the model. `auto` then stands for vLLM only if vLLM can read it.
    """
    if given.incomplete is not None:
        raise InputError(f"Option {given.incomplete!r} requires an argument.")
    wanted = given.own.get(ENGINE.name) or env.VCLI_ENGINE.get()
    if wanted not in ENGINES:
        raise InputError(f"--engine {wanted!r} is not one of {', '.join(ENGINES)}{did_you_mean(wanted, ENGINES)}.")
    if is_gguf and wanted not in ("embedded", "vllm") and not is_read_by_vllm():
        return "embedded"
    return given.engine(wanted)


def vllm_options(given: ServeWords) -> VllmOptions:
    """Returns the settings of a start of vLLM. Raises InputError for an invalid value of a launcher flag."""
    fields = {path.rpartition(".")[2]: flag for flag in _FLAGS for path in flag.fields}
    values = {field: value for field, flag in fields.items() for value in _values(flag, given.own)}
    return VllmOptions(words=tuple(given.engine_words), start_method=env.VLLM_WORKER_MULTIPROC_METHOD.get(), **values)


def _values(flag: Flag, own: Mapping[str, str]) -> Iterator[Any]:
    """Yields the converted value of a flag or else of its variable. Yields nothing if there is none."""
    value: Any = own.get(flag.name)
    is_given = value is not None if flag.nargs == 0 else bool(value)
    if not is_given and flag.variable is not None and flag.is_set:
        value = flag.variable.get()
    if value is None:
        return
    if flag.nargs == 0:
        value = bool(value)
    try:
        yield value if (kind := click_type(flag)) is None else kind.convert(value, None, None)
    except click.BadParameter as err:
        raise InputError(f"{flag.name}: {err.message}") from err
