"""The settings of a front (`--idle-stop`) for both engines, and what such a server cannot have."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Final

from envs.registry import env
from server.machine.command_line import masked_words
from startup.config import StartupConfig
from startup.errors import StartupError
from startup.logs.options import LogOptions
from startup.model.file_plan import plan_files
from startup.model.request import ModelRequest
from startup.on_request.child_process import ServerCommand
from startup.on_request.front import FrontOptions
from startup.on_request.front_keys import FrontKeys
from startup.serve_words import ServeWords
from startup.session import ListenAddress
from startup.standby.kinds import kind_for
from startup.vllm.command_line import CommandLine
from startup.vllm.options import VllmOptions
from vllm_cli.errors import InputError
from vllm_cli.flags.secret_flags import secrets_as_variables

_TLS: Final = "--idle-stop does not go with {}: end TLS in front of the server, such as in a proxy."
_ONE_SERVER: Final = "--idle-stop does not go with {}: it is for one API server with all its processes on this machine."
_SEVERAL: Final = (
    "--api-server-count", "-asc", "--data-parallel-size", "-dp", "--nnodes", "-n",
)  # fmt: skip
"""Flags with which vLLM has several API servers or machines, unless their value is 1."""
_ELSEWHERE: Final = (
    "--headless", "--grpc", "--node-rank", "-r", "--data-parallel-rank", "-dpn", "--data-parallel-external-lb", "-dpe",
    "--data-parallel-hybrid-lb", "-dph", "--data-parallel-multi-port-external-lb", "-dpm",
)  # fmt: skip


def embedded_front(config: StartupConfig, words: Sequence[str]) -> FrontOptions:
    """The front of the embedded engine; raises InputError for what it cannot have."""
    assert config.idle_stop_s is not None
    if config.server.tls.ssl_certfile is not None:
        raise InputError(_TLS.format("--ssl-certfile"))
    network = config.server.network
    has_standby = _has_standby(config.idle_warm, config.standby) and not config.engine.trust_remote_code
    return FrontOptions(
        address=ListenAddress(network.host, network.port, network.uds),
        model_name=config.server.served_model_names[0],
        command=_command(words),
        idle_stop_s=config.idle_stop_s,
        wait_s=config.startup_timeout_s,
        standby_kind=kind_for("embedded", ServeWords(words)) if has_standby else None,
        find_model=lambda: _folder(lambda: ModelRequest.of_start(config)),
        is_private=network.api_key_everywhere,
        keys=FrontKeys(network.api_keys, network.api_key_file, network.root_path),
        logs=config.logs,
    )


def vllm_front(options: VllmOptions, words: Sequence[str]) -> FrontOptions:
    """The front of vLLM; raises InputError for what it cannot have."""
    assert options.idle_stop_s is not None
    line = CommandLine.of(options.words)
    _reject_for_vllm(line)
    has_standby = _has_standby(options.idle_warm, options.standby)
    command = _command(words)
    return FrontOptions(
        address=ListenAddress(line.host, line.port or 0, line.uds),
        model_name=line.served_name,
        command=command,
        idle_stop_s=options.idle_stop_s,
        wait_s=options.startup_timeout_s,
        standby_kind=kind_for("vllm", ServeWords(words)) if has_standby else None,
        find_model=lambda: _folder(lambda: line.request) if line.model else None,
        is_private=False,
        keys=_vllm_keys(line, command),
        logs=LogOptions(level=env.VLLM_LOGGING_LEVEL.get(), format=options.log_format),
    )


def _vllm_keys(line: CommandLine, command: ServerCommand) -> FrontKeys:
    """None with a middleware, which may open paths."""
    key = command.variables.get(env.VLLM_API_KEY.name) or env.VLLM_API_KEY.get()
    if not key or line.has("--middleware"):
        return FrontKeys(())
    return FrontKeys((key,), root_path=line.values.get("--root-path", ""))


def _reject_for_vllm(line: CommandLine) -> None:
    if line.has("--ssl-certfile", "--ssl-keyfile"):
        raise InputError(_TLS.format("--ssl-certfile"))
    several = (name for name in _SEVERAL if line.values.get(name, "1") != "1")
    elsewhere = (name for name in _ELSEWHERE if line.has(name))
    if (name := next(chain(several, elsewhere), None)) is not None:
        raise InputError(_ONE_SERVER.format(name))
    if not line.listens:
        raise InputError("--idle-stop needs a --port that is known before vLLM starts: name one instead of 0.")
    if env.VCLI_PLAIN_VLLM.get():
        raise InputError("--idle-stop does not go with VCLI_PLAIN_VLLM=1, with which vLLM owns its port itself.")


def _has_standby(idle_warm: str, standby: str) -> bool:
    return idle_warm == "auto" and standby != "off"


def _command(words: Sequence[str]) -> ServerCommand:
    """The same command; keys are in variables, as others can read the words of a process.

    Raises:
        InputError: a key is left, as the variable holds only one.
    """
    kept, variables = secrets_as_variables(words)
    if masked_words(kept) != b"".join(os.fsencode(word) + b"\0" for word in kept):
        raise InputError("--idle-stop does not go with several keys on the command line: use --api-key-file.")
    return ServerCommand(kept, variables)


def _folder(request: Callable[[], ModelRequest]) -> str | None:
    """The model's folder, if it is on disk."""
    with suppress(StartupError, OSError, ValueError):
        files = plan_files(request()).files
        if files is not None and Path(files.path).is_dir():
            return os.path.abspath(files.path)  # noqa: PTH100 - links of a hub's cache stay
    return None
