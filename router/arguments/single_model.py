"""The settings of a router with one model (`serve MODEL` with --idle-stop or --restart), for both engines."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from router.arguments.model_check import ModelStart, folder_of, with_sleep_arguments
from router.arguments.router_arguments import (
    LACKED_BY_VLLM,
    QUIET_FLAG,
    is_elsewhere,
    is_of_models,
    own_line,
    with_defaults,
)
from router.model_entry import ModelEntry
from router.router import RouterOptions
from startup.arguments.embedded_line import options_of_settings
from startup.arguments.errors import InputError
from startup.arguments.read_arguments import ReadArguments
from startup.arguments.screening import secrets_as_variables, show_notices
from startup.arguments.serve_command import config_of
from startup.arguments.table import find_known_flag
from startup.settings.config import StartOptions, StartupConfig, flags_with_role
from startup.settings.serve_arguments import CommandLine, ParsedOption, join
from startup.vllm_arguments.options import VllmOptions
from startup.vllm_arguments.vllm_line import VllmLine

_MAX_WAITING: Final = 1024
"""The default of --max-waiting for a single model, instead of that for each of several models."""
_MIDDLEWARE: Final = "--middleware"


def router_of_one(read: ReadArguments, start: StartupConfig | VllmOptions) -> RouterOptions:
    """The settings of a router for one model of either engine."""
    parts = read.of_router
    if isinstance(start, VllmOptions):
        return vllm_router(start, parts)
    assert read.own is not None
    entry = _entry(start, parts, "embedded", start.server.served_model_names)
    return _router(start, read.own, ModelStart.of_embedded(entry, start))


def vllm_router(options: VllmOptions, parts: Sequence[ParsedOption]) -> RouterOptions:
    """The settings of a router for one model of vLLM. Raises InputError for flags that it cannot have."""
    line = options.line
    _reject_vllm_flags(options, parts, line)
    names = line.values("--served-model-name") or (line.served_name,)
    entry = _entry(options, parts, "vllm", names)
    own = own_line((*_options_of_file(line), *parts))
    router = _router(config_of(own), own, ModelStart.of_vllm(entry, options))
    return replace(router, model_has_keys=any(option.name in flags_with_role("keys") for option in line.in_file))


def _options_of_file(line: VllmLine) -> list[ParsedOption]:
    """The settings that the router needs from the --config file. vLLM reads the file itself."""
    names = flags_with_role("address", "keys", "port", "both", "program")
    settings = line.config.settings if line.config is not None else {}
    known = {key: find_known_flag(f"--{key}") for key in settings}
    needed = {key: settings[key] for key, flag in known.items() if flag is not None and flag.name in names}
    needed = {key: value for key, value in needed.items() if value not in (None, [])}  # vLLM takes its default
    return options_of_settings(needed)


def _reject_vllm_flags(options: VllmOptions, parts: Sequence[ParsedOption], line: VllmLine) -> None:
    """Raises InputError for a flag that would have no effect on the port of the router."""
    if line.has(_MIDDLEWARE):
        text = "because middleware would not see what the router answers itself: leave one of them out"
        raise InputError(f"{_flag(options)} does not go with {_MIDDLEWARE}, {text}.")
    of_tls, of_keys = flags_with_role("tls"), flags_with_role("keys")
    for option in line.in_file:
        name = option.name
        if name not in of_tls | of_keys or not option.is_on:
            continue
        text = f"{_flag(options)} does not go with {name.removeprefix('--')} in --config"
        if name in of_tls:
            raise InputError(f"{text}: write it as a flag.")
        if any(part.flag is not None and part.name == name for part in parts):
            raise InputError(f"{text} and as a flag: leave one of them out.")


def _entry(options: StartOptions, parts: Sequence[ParsedOption], engine: str, names: Sequence[str]) -> ModelEntry:
    """The model's entry. Its command line has no API keys, because other users could read them there."""
    kept: list[ParsedOption] = []
    if options.listen_when_ready:
        text = "whose port is always open: leave one of them out"
        raise InputError(f"--listen-when-ready does not go with {_flag(options)}, {text}.")
    for part in parts:
        flag, name = part.flag, part.name
        if is_elsewhere(name, part.values):
            raise InputError(f"{name} does not go with {_flag(options)}: all its processes are on this machine.")
        if is_of_models(flag) and (engine == "embedded" or name not in LACKED_BY_VLLM):
            kept.append(part)
    kept, variables = secrets_as_variables(kept)
    arguments = (argument for argument in join(kept) if argument != "--")  # flags follow
    entry = ModelEntry(
        name=names[0],
        aliases=tuple(names[1:]),
        arguments=(*arguments, "--engine", engine, QUIET_FLAG),
        engine=engine,
        env=variables,
        ttl_s=options.idle_stop_s,
        idle_sleep_s=options.idle_sleep_s,
        restart_limit=options.restart_limit,
        preload=True,
    )
    entry, notice = with_sleep_arguments(entry)
    show_notices([f"{entry.name} {notice}"] if notice else (), options.log_format)
    return entry


def _flag(options: StartOptions) -> str:
    """The flag that makes this process a router: --idle-stop or --restart."""
    if options.restart_limit is not None:
        return "--restart"
    return "--idle-sleep" if options.idle_stop_s is None else "--idle-stop"


def _router(config: StartupConfig, line: CommandLine, start: ModelStart) -> RouterOptions:
    """`config` has the values of the router's own flags, which `line` has."""
    entry, request, kind = start
    kinds = () if kind is None else (kind,)
    return RouterOptions(
        config=with_defaults(config, line, max_waiting=_MAX_WAITING),
        entries={entry.name: entry},
        find_template_kinds=lambda: kinds,
        find_model=lambda _: folder_of(request),
        check_again=lambda entry: with_sleep_arguments(replace(entry, sleep_levels=ModelEntry.sleep_levels)).entry,
        only=entry.name,
    )
