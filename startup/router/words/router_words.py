"""Splits the words of `serve --models FILE` and `serve A B`: models, its own flags, defaults of models."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Final, NamedTuple

from startup.serve_words import is_flag_like
from vllm_cli.errors import InputError
from vllm_cli.flags.flag import Flag
from vllm_cli.flags.secret_flags import find_values, split_flags
from vllm_cli.flags.supported import GROUPS, SUPPORTED


def _flags_of(section: str) -> frozenset[str]:
    return frozenset(flag.name for flag in SUPPORTED if flag.fields and flag.fields[0].startswith(f"{section}."))


SEVERAL: Final = frozenset(flag.name for flag in GROUPS["Several models"])
ADDRESS: Final = frozenset(("--host", "--port", "--uds"))
KEYS: Final = frozenset(("--api-key", "--api-key-file", "--api-key-everywhere"))
TLS: Final = _flags_of("server.tls")
_LOGS: Final = frozenset(
    ("--log-level", "--log-format", "--log-config-file", "--uvicorn-log-level", "--disable-uvicorn-access-log")
)
_IDLE: Final = frozenset(("--idle-stop", "--idle-warm"))
_START: Final = frozenset(("--engine", "--startup-timeout", "--preflight-only", "--json"))
PORT: Final = frozenset(
    (
        "--http-max-connections", "--http-header-timeout", "--http-body-timeout", "--http-min-body-rate",
        "--disable-access-log-for-endpoints",
    )
)  # fmt: skip
"""Of the port alone: what clients send reaches a model when it is complete."""
FOR_BOTH: Final = frozenset(
    (
        "--h11-max-header-count", "--h11-max-incomplete-event-size", "--http-send-timeout", "--http-send-buffer-size",
        "--preflight",
    )
)  # fmt: skip
"""The models' servers have them, too."""

OWN: Final = SEVERAL | _flags_of("server.network") | TLS | _LOGS | _IDLE | _START | PORT
"""The router's flags; a model does not get them."""
OF_ROUTER_ALONE: Final = OWN - {"--engine", "--startup-timeout", *_LOGS}
"""Those that a model cannot have, either."""
QUIET_FLAG: Final = "--disable-uvicorn-access-log"
"""For each model: the router logs the requests, and knows the client."""

_ELSEWHERE: Final = frozenset(
    (
        "--headless", "--grpc", "--nnodes", "--node-rank", "--data-parallel-rank", "--data-parallel-external-lb",
        "--data-parallel-hybrid-lb", "--data-parallel-multi-port-external-lb",
    )
)  # fmt: skip
_OF_ONE_MODEL: Final = {
    "--config": "write its flags here, or `config:` into the args of each model",
    "--model": "name the models in the file, or as words before all flags",
    "--served-model-name": "the names are those of the file; `aliases` are further ones",
    "--listen-when-ready": "their port is open at once, and a request starts its model",
    "--lora-modules": "write it into the args of its model",
    "--startup-report": "write it into the args of a model",
}
"""Flags that cannot be the same for all models, and what to do instead."""
_ONE_SERVER: Final = "its processes are on this machine, behind one socket"


class RouterWords(NamedTuple):
    """The words after `serve`."""

    models: tuple[str, ...]
    """Those before the first flag."""
    own: list[str]
    defaults: list[str]
    """Flags in front of those of each model."""


def split_router_words(words: Sequence[str]) -> RouterWords:
    """Raises InputError for what several models cannot have."""
    models = tuple(takewhile(lambda word: not is_flag_like(word), words))
    own: list[str] = []
    defaults: list[str] = []
    for flag, given in split_flags(words[len(models) :]):
        if given.words[0] == "--":
            raise InputError("several models do not go with the word --: leave it out.")
        name = flag.name if flag is not None else given.flag
        _reject(name, given.values)
        if name in OWN or name in FOR_BOTH:
            own += given.words
        if name not in OWN:
            defaults += given.words
    if models and find_values(own, "--models"):
        raise InputError(f"--models does not go with {models[0]}: name this model in the file.")
    return RouterWords(models, own, defaults)


def fault_of_model(flag: Flag) -> str | None:
    """Why a model behind a router cannot have a flag; None if it can."""
    if flag.name in ADDRESS:
        return "requests for all models come to the port of the command line"
    if flag.name in KEYS:
        return "give it on the command line, for all models, or use apiKeys"
    if flag.name in PORT:
        return "it is of the port, which all models have together: give it on the command line"
    if flag.name in OF_ROUTER_ALONE:
        return "ttl is its time without requests" if flag.name == "--idle-stop" else "it is a flag of the command line"
    return _ONE_SERVER if flag.name in _ELSEWHERE else None


def is_elsewhere(name: str, values: Sequence[str]) -> bool:
    """Whether a server with this flag would not be on this machine alone, behind one socket."""
    return name in _ELSEWHERE and tuple(values) != ("1",)


def _reject(name: str, values: Sequence[str]) -> None:
    if name in _OF_ONE_MODEL:
        raise InputError(f"{name} does not go with several models: {_OF_ONE_MODEL[name]}.")
    if is_elsewhere(name, values):
        raise InputError(f"{name} does not go with several models: of each, {_ONE_SERVER}.")
    if name == "--standby" and tuple(values) == ("require",):
        raise InputError(
            "--standby require does not go with several models, which have a standby of their own: leave it out."
        )
