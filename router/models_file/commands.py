"""Reads the key `cmd`: recognises commands that start our own engines, and describes all other commands."""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from base.wording import list_some
from envs.variable import parse_duration
from router.model_entry import PORT, ForeignCommand, ModelEntry, ServerCall
from router.models_file.document import Findings, KeyPath, show
from startup.settings.config import flags_with_role
from startup.settings.serve_arguments import split, vllm_file

SLEEP_KEYS: Final = ("sleep", "wake", "sleepEndpoints", "wakeEndpoints")
"""Keys for the requests that put a command's server to sleep and wake it. The last two are llmsnap's."""

_ASSIGNMENT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_BUILTINS: Final = (".", "alias", "cd", "eval", "export", "pushd", "set", "source", "ulimit", "umask", "unset")
_OPERATOR: Final = re.compile(r"\|\|?|&&?|[^'\"\\]*;|\d*(>>?|<)(&\d|&-)?|\d*(>>?|<)[^<>=&(]+|&>>?.*|\(|\)|\{|\}")
"""An argument without quotes that a shell does not pass to a program."""
_REPLACED: Final = re.compile(r"^~(/|$)|^[^']*(\$[A-Za-z_(]|`)")
"""An argument that a shell would pass to a program with another text."""
_SHELL: Final = "cmd: sh -c 'exec …'"
_API_SERVER: Final = "vllm.entrypoints.openai.api_server"
_ENGINES: Final = {"vllm": "vllm", "vllm-cli": "auto", _API_SERVER: "vllm", "vllm.entrypoints.cli.main": "vllm"}
_PYTHON: Final = re.compile(r"python(3(\.\d+)?)?")
_LOCAL: Final = ("localhost", "127.0.0.1", "::1", "0.0.0.0")


class RecognisedCommand(NamedTuple):
    """A command that starts one of our own engines."""

    engine: str
    arguments: list[str]
    """MODEL and the flags, without --host, --port and --uds."""
    env: dict[str, str]


def read_command(text: str, path: KeyPath, findings: Findings) -> list[str] | None:
    """The arguments of a command in the file. A line may end in a backslash, or begin with # as a comment.

    If a quote is not closed, or if only a shell could execute the command, reports a fault and returns None.
    """
    line = " ".join(line.removesuffix("\\") for line in without_comments(text).splitlines())
    try:
        arguments = shlex.split(line)
    except ValueError as err:
        findings.fault(path, f"must be a command, got {show(text)}: {err}".rstrip("."))
        return None
    if fault := shell_fault(line, arguments):
        findings.fault(path, fault)
        return None
    left = next(filter(_REPLACED.search, _unquoted(line)), None)
    if left is not None:
        findings.notice(path, f"{show(left)} reaches the program as it is, because no shell replaces it")
    return arguments


def shell_fault(line: str, arguments: Sequence[str]) -> str | None:
    """What in a command only a shell would understand, and what to write. None if there is nothing."""
    program = next((argument for argument in arguments if not _ASSIGNMENT.match(argument)), "")
    if program.startswith("~"):
        return f"{show(program)}: only a shell replaces ~. Write the whole path, or {_SHELL}"
    if program in _BUILTINS or (program == "exec" and recognise(arguments) is None):
        return f"{show(program)} is a command of a shell: leave it out, or {_SHELL}"
    operator = next(filter(_OPERATOR.fullmatch, _unquoted(line)), None)
    if operator is not None:
        return f"has {show(operator)}, which only a shell understands: write {_SHELL}"
    if arguments and program != arguments[0] and recognise(arguments) is None:
        return f"begins with {show(arguments[0])}, which only a shell understands: use `env`, or write {_SHELL}"
    return None


def _unquoted(line: str) -> list[str]:
    """The arguments of a line, with their quotes if they have any."""
    with suppress(ValueError):  # which sees a quote within an argument otherwise
        return shlex.split(line, posix=False)
    return []


def without_comments(text: str) -> str:
    """The command without lines that begin with #."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return "\n".join(lines)


def recognise(arguments: Iterable[str]) -> RecognisedCommand | None:
    """Describes a command that starts one of our own engines. None for any other command.

    A program of another Python environment, named by its path or found only there, is not one of our engines.
    """
    rest = list(arguments)
    env: dict[str, str] = {}
    if rest and Path(rest[0]).name in ("env", "exec"):
        rest = rest[1:]
    while rest and _ASSIGNMENT.match(rest[0]):
        name, _, env[name] = rest.pop(0).partition("=")
    if not rest or not _is_of_this_environment(rest[0]):
        return None
    program = Path(rest.pop(0)).name
    if _PYTHON.fullmatch(program) and rest[:1] == ["-m"] and len(rest) > 1:
        program = rest[1].replace("_", "-") if rest[1] == "vllm_cli" else rest[1]
        rest = rest[2:]
    engine = _ENGINES.get(program)
    if engine is None:
        return None
    if engine == "vllm" and vllm_file() is None and shutil.which(program) is not None:
        return None  # vLLM is only in another Python environment, whose program is in PATH
    if program != _API_SERVER:
        if rest[:1] != ["serve"]:
            return None
        rest = rest[1:]
    return RecognisedCommand(engine, _with_model_first(without_address(rest)), env)


def _is_of_this_environment(program: str) -> bool:
    path = Path(program)
    if not path.is_absolute() or not path.exists():
        return True
    own = Path(sys.executable).parent
    return path.parent == own or path.parent.resolve() == own.resolve()


def _with_model_first(arguments: list[str]) -> list[str]:
    """Puts the model of the flag `--model` before all flags, as the argument MODEL."""
    parts = list(split(arguments, {"--model": 1}.get))
    models = [given.values[0] for given in parts if given.typed == "--model" and given.values]
    if not models or not arguments[0].startswith("-"):
        return arguments
    others = [given for given in parts if given.typed != "--model"]
    return [models[-1], *(argument for given in others for argument in given.arguments)]


def without_address(arguments: Iterable[str]) -> list[str]:
    """The arguments without --host, --port and --uds."""
    address = dict.fromkeys(flags_with_role("address"), 1)
    return [
        argument
        for given in split(arguments, address.get)
        if given.typed not in address
        for argument in given.arguments
    ]


def foreign_command(keys: Mapping[str, Any], arguments: list[str], path: KeyPath, findings: Findings) -> ForeignCommand:
    """Describes the command of another server. Reports faults of its address."""
    address = keys.get("proxy") or f"http://127.0.0.1:{PORT}"
    names_port = any(PORT in argument for argument in arguments)
    if PORT in address and not names_port:
        findings.fault(
            (*path, "cmd"),
            f"must contain {PORT}, or `proxy` must name the port on which the command listens, such as "
            "proxy: http://127.0.0.1:8080",
        )
    stop_arguments = read_command(keys.get("cmdStop") or "", (*path, "cmdStop"), findings)
    return ForeignCommand(
        arguments=tuple(arguments),
        address=address,
        port=_port_of(address, path, findings),
        check_endpoint=_endpoint(keys.get("checkEndpoint") or "/health"),
        stop_words=tuple(stop_arguments or ()),
        **_sleep_calls(keys, path, findings),
    )


def _sleep_calls(keys: Mapping[str, Any], path: KeyPath, findings: Findings) -> dict[str, tuple[ServerCall, ...]]:
    """The requests that put the server to sleep and wake it. Empty unless the file gives both."""
    sleep = [_call(each) for each in keys.get("sleep") or keys.get("sleepEndpoints") or ()]
    wake = [_call(each) for each in keys.get("wake") or keys.get("wakeEndpoints") or ()]
    if bool(sleep) != bool(wake):
        given, missing = ("sleep", "wake") if sleep else ("wake", "sleep")
        findings.fault((*path, given), f"needs `{missing}` beside it: name the calls for both")
        return {}
    for key, value in (("on_swap", "sleep"), ("sleepMode", "enable")):
        if keys.get(key) == value and not sleep:
            findings.notice((*path, key), "has no effect without `sleep` and `wake`: the model is stopped instead")
    return {"sleep_calls": tuple(sleep), "wake_calls": tuple(wake)}


def _call(given: Mapping[str, Any]) -> ServerCall:
    body = given.get("body") or ""
    timeout = given.get("timeout", ServerCall._field_defaults["timeout_s"])
    return ServerCall(
        method=given.get("method", "POST"),
        path=_endpoint(given.get("path") or given["endpoint"]),
        body=body if isinstance(body, str) else json.dumps(body),
        timeout_s=parse_duration(timeout) if isinstance(timeout, str) else float(timeout),
    )


def _endpoint(path: str) -> str:
    return path if path == "none" or path.startswith("/") else f"/{path}"


def _port_of(address: str, path: KeyPath, findings: Findings) -> int | None:
    if PORT in address:
        return None
    try:
        parts = urlsplit(address)
        if not parts.hostname or parts.port == 0:
            raise ValueError("no host, or port 0")
    except ValueError as err:
        findings.fault(
            (*path, "proxy"), f"must be an address such as http://127.0.0.1:{PORT}, got {show(address)}: {err}"
        )
        return None
    return parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def exclude_equal_ports(entries: Mapping[str, ModelEntry], findings: Findings) -> dict[str, ModelEntry]:
    """Returns all models. Commands that use the same fixed port are set to exclude each other."""
    result = dict(entries)
    by_address: dict[tuple[str, int], list[str]] = {}
    for name, entry in entries.items():
        if entry.foreign is not None and entry.foreign.arguments and entry.foreign.port is not None:
            host = urlsplit(entry.foreign.address).hostname or ""
            address = ("localhost" if host in _LOCAL else host, entry.foreign.port)
            by_address.setdefault(address, []).append(name)
    for (_, port), sharing in by_address.items():
        for name in sharing:
            others = frozenset(sharing) - {name}
            if others - entries[name].excludes:
                text = f"has port {port}, as does {list_some(sorted(others))}: they never run together"
                findings.notice(("models", name, "proxy"), f"{text}; ${{PORT}} is a free port")
            excludes = entries[name].excludes | others
            result[name] = replace(entries[name], excludes=excludes, sleep_levels=())  # asleep, it keeps the port
    return result
