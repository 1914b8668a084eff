"""Splits the arguments of `serve --models FILE` and `serve A B`: models, router's flags, models' flags."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Final, NamedTuple, TypeGuard

from envs.registry import env
from startup.arguments.embedded_line import parse_line
from startup.arguments.errors import InputError
from startup.arguments.screening import argument_notices
from startup.arguments.serve_command import config_of
from startup.settings.config import StartupConfig, flags_with_role
from startup.settings.flag import Flag
from startup.settings.serve_arguments import CommandLine, ParsedOption
from startup.vllm_arguments.flags import flags_that_change

_NOT_OF_MODELS: Final = frozenset(("address", "keys", "tls", "port", "router"))
"""The roles of flags that a model of a router must not have."""
_BODY_BYTES: Final = 256 << 20
_HELD_BYTES: Final = 4 << 30
"""Defaults for the router's port. The router keeps long bodies on disk, and does not know models' limits."""
QUIET_FLAG: Final = "--disable-uvicorn-access-log"
"""A flag for each model's server. The router logs the requests, because only it knows the clients."""

LACKED_BY_VLLM: Final = frozenset(name for name in flags_with_role("both") if name.startswith("--http-"))
"""Limits that vLLM does not have. The router enforces them itself."""

_OF_ONE_MODEL: Final = {
    "--config": "write its flags here, or `config:` into the args of each model",
    "--model": "name the models in the file, or as arguments before all flags",
    "--served-model-name": "the names are those of the file; `aliases` are further ones",
    "--middleware": "write it into the args of a model, where it sees all requests for this model",
    "--listen-when-ready": "their port is open at once, and a request starts its model",
    "--restart": "a request starts a model that has failed",
    "--lora-modules": "write it into the args of its model",
    "--startup-report": "write it into the args of a model",
}
"""A flag that several models cannot share -> the advice in the error message."""
_KEYS: Final = {
    "--idle-stop": "ttl is its time without requests",
    "--idle-sleep": "idle_sleep is its time awake without requests",
    "--on-swap": "on_swap is that of one model",
}
"""Flag -> a hint at the corresponding key in the file of models."""
_ONE_SERVER: Final = "its processes are on this machine, behind one socket"


class SeveralModels(NamedTuple):
    """A command line with several models."""

    config: StartupConfig
    """The values of the router's own flags. Models' flags have their default values here."""
    models: tuple[str, ...]
    """The arguments before the first flag, which name models."""
    defaults: list[str]
    """The flags that are put before each model's own flags."""
    engine: str | None
    has_log_level: bool
    notices: tuple[str, ...]
    """What the user should know about the arguments."""


def read_several(parts: Sequence[ParsedOption]) -> SeveralModels:
    """Reads the router's own flags. Models' flags are checked later for each model. Raises ClickException."""
    models = tuple(
        part.arguments[0] for part in takewhile(lambda part: not part.typed and part.arguments[0] != "--", parts)
    )
    flags = parts[len(models) :]
    for part in flags:
        if part.arguments[0] == "--":
            raise InputError("several models do not go with the argument --: leave it out.")
        _reject(part.name, part.values)
    line = own_line(flags)
    if models and line.last("--models") is not None:
        raise InputError(f"--models does not go with {models[0]}: name this model in the file.")
    config = with_defaults(config_of(line), line)
    if not models and config.several.models is None:
        raise InputError("--models must name a file.")
    if config.standby == "require":
        raise InputError(f"{env.VCLI_STANDBY.name}=require does not go with several models.")
    of_models = (part for part in flags if not is_own(part.flag) or part.flag.role == "both")
    return SeveralModels(
        config,
        models,
        defaults=[argument for part in of_models for argument in part.arguments],
        engine=line.value("--engine"),
        has_log_level=line.last("--log-level") is not None or env.VLLM_LOGGING_LEVEL.raw is not None,
        notices=tuple(argument_notices(parts, line)),
    )


def own_line(parts: Iterable[ParsedOption]) -> CommandLine:
    """The router's own flags, read by the embedded engine's rules."""
    return parse_line(part for part in parts if is_own(part.flag))


def with_defaults(config: StartupConfig, line: CommandLine, *, max_waiting: int | None = None) -> StartupConfig:
    """The configuration with a router's defaults of flags that the command line does not have."""
    names = {option.name for option in line.options}
    limits, several = config.limits, config.several
    if "--http-max-body-size" not in names:
        limits = replace(limits, max_body_bytes=_BODY_BYTES)
    if "--http-max-held-size" not in names:
        limits = replace(limits, max_held_bytes=_HELD_BYTES)
    if "--max-waiting" not in names and max_waiting is not None:
        several = replace(several, max_waiting=max_waiting)
    return replace(config, limits=limits, several=several)


def is_own(flag: Flag | None) -> TypeGuard[Flag]:
    """Whether the router itself uses the flag."""
    return flag is not None and flag.role not in (None, "run")


def is_of_models(flag: Flag | None) -> bool:
    """Whether a model of a router can have this flag."""
    return flag is None or flag.role not in _NOT_OF_MODELS


def fault_of_model(flag: Flag) -> str | None:
    """Why a model of a router cannot have this flag. None if the flag is allowed."""
    match flag.role:
        case "address":
            return "requests for all models come to the port of the command line"
        case "keys":
            return "give it on the command line, for all models, or use apiKeys"
        case "tls" | "port":
            return "it belongs to the port, which all models share: give it on the command line"
        case "router":
            return _KEYS.get(flag.name, "it belongs on the command line")
    return _ONE_SERVER if flag.name in flags_that_change("elsewhere") else None


def is_elsewhere(name: str, values: Sequence[str]) -> bool:
    """Whether a server with this flag would use other machines, or listen on more than one socket."""
    return name in flags_that_change("elsewhere") and tuple(values) != ("1",)


def _reject(name: str, values: Sequence[str]) -> None:
    if name in _OF_ONE_MODEL:
        raise InputError(f"{name} does not go with several models: {_OF_ONE_MODEL[name]}.")
    if is_elsewhere(name, values):
        raise InputError(f"{name} does not go with several models: of each model, {_ONE_SERVER}.")
    if name == "--standby" and tuple(values) == ("require",):
        raise InputError(
            "--standby require does not go with several models, which have a standby of their own: leave it out."
        )
