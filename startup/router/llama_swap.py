"""What is llama-swap's in the file of models: macros, commands, groups, and keys that are not supported."""

import re
import shlex
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from envs import foreign
from envs.suggestion import did_you_mean
from server.wording import list_some
from startup.router.model_entry import ForeignCommand, ModelEntry
from startup.router.models_document import Findings, KeyPath, show
from startup.serve_words import is_vllm_installed, normalise, split

PORT: Final = "${PORT}"
PID: Final = "${PID}"
_MACRO: Final = re.compile(r"\$\{([A-Za-z0-9_.-]+)\}")
_ENVIRONMENT: Final = "env."
_MAX_TEXT: Final = 1 << 16
"""Characters of a text after its macros are replaced; each level of macros could double it."""

_ASSIGNMENT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_API_SERVER: Final = "vllm.entrypoints.openai.api_server"
_ENGINES: Final = {"vllm": "vllm", "vllm-cli": "auto", _API_SERVER: "vllm", "vllm.entrypoints.cli.main": "vllm"}
_PYTHON: Final = re.compile(r"python(3(\.\d+)?)?")
_ADDRESS: Final[Mapping[str, int]] = {"--host": 1, "--port": 1, "--uds": 1}
_LOCAL: Final = ("localhost", "127.0.0.1", "::1", "0.0.0.0")

_UNUSED: Final = {
    "capabilities": "has no effect: clients learn what a model can do from the model's own answers",
    "captureBuffer": "has no effect: no requests are recorded",
    "includeAliasesInList": "has no effect: /v1/models shows the aliases of each model as a member of it",
    "logHTTPRequests": "has no effect: requests are logged unless --disable-uvicorn-access-log is given",
    "logRequests": "has no effect: requests are logged unless --disable-uvicorn-access-log is given",
    "logTimeFormat": "has no effect: see --log-format and --log-config-file",
    "logToStdout": "has no effect: the lines of all models are written to standard error, with their names",
    "metricsMaxInMemory": "has no effect: see /metrics",
    "performance": "has no effect: see /metrics",
    "sendLoadingState": "has no effect: streams get comments (`: starting, load_weights 42 %`) while a model starts",
    "store": "has no effect: nothing is stored",
    "timeouts": "has no effect: a connection to a model has no limits of time but start_timeout",
    "ui": "has no effect: the status page is at /",
    "unloadTimeout": "has no effect: a model that does not stop within 30 s is killed",
    "upstream": "has no effect: /upstream/MODEL/... passes every path on",
}
_UNSUPPORTED: Final = {
    "filters": "is not supported, requests are passed on unchanged: for defaults of sampling, use "
    "--override-generation-config in args",
    "matrix": "is not supported: which models run together is decided by memory (--memory-budget, --max-running), "
    "`pinned` and `groups`",
    "peers": "is not supported: route to other servers in a gateway such as LiteLLM in front",
    "profiles": "is not supported: use `aliases`",
    "routing": "is not supported: the order is decided by --max-wait, `pinned` and `concurrency`",
    "useModelName": "is not supported, the request's name is passed on: let the server accept it, as llama-server "
    "does, or use --served-model-name",
}


class MacroError(Exception):
    """A macro cannot be replaced."""


class Macros:
    """The texts that `${NAME}` stands for."""

    def __init__(self, texts: Mapping[str, object], kept: Collection[str] = ()) -> None:
        """
        Args:
            texts: by name.
            kept: macros that stay, such as PORT, which is known only when a model starts.
        """
        self._texts = texts
        self._kept = kept

    def expand(self, text: str) -> str:
        """Raises MacroError."""
        return self._expand(text, ())

    def _expand(self, text: str, within: tuple[str, ...]) -> str:
        expanded = _MACRO.sub(lambda match: self._value(match, within), text)
        if len(expanded) > _MAX_TEXT:
            raise MacroError(f"has more than {_MAX_TEXT} characters with its macros: shorten them")
        return expanded

    def _value(self, match: re.Match[str], within: tuple[str, ...]) -> str:
        name = match[1]
        if name.startswith(_ENVIRONMENT):
            variable = name.removeprefix(_ENVIRONMENT)
            if not foreign.is_set(variable):
                raise MacroError(f"{match[0]}: the environment variable {variable} is not set")
            return foreign.text_of(variable)
        if name in self._kept:
            return match[0]
        if name in within:
            circle = " -> ".join((*within[within.index(name) :], name))
            raise MacroError(f"the macros contain themselves: {circle}")
        if name not in self._texts:
            places = {"PID": ": it is known in cmdStop only", "PORT": ": it is known in cmd, proxy and env only"}
            hint = places.get(name) or did_you_mean(name, self._texts)
            raise MacroError(f"there is no macro {match[0]}{hint}")
        value = self._texts[name]
        return self._expand(str(value).lower() if isinstance(value, bool) else str(value), (*within, name))


class ServeCommand(NamedTuple):
    """A `cmd` that is recognised."""

    engine: str
    words: list[str]
    """MODEL and flags, without those of the address."""
    env: dict[str, str]


def split_command(text: str) -> list[str]:
    """The words of a `cmd`: lines may end in a backslash, lines that begin with # are comments.

    Raises:
        ValueError: a quote is not closed.
    """
    return shlex.split(" ".join(line.removesuffix("\\") for line in without_comments(text).splitlines()))


def without_comments(text: str) -> str:
    """A command without the lines that begin with #."""
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))


def recognise(words: Iterable[str]) -> ServeCommand | None:
    """What a command serves with this program's engines; None for any other command.

    A program that is named by its path in another environment, or exists only there, is another command.
    """
    rest = list(words)
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
    if program not in _ENGINES or (_ENGINES[program] == "vllm" and _is_only_elsewhere(program)):
        return None
    if program != _API_SERVER:
        if rest[:1] != ["serve"]:
            return None
        rest = rest[1:]
    return ServeCommand(_ENGINES[program], _with_model_first(without_address(rest)), env)


def _is_of_this_environment(program: str) -> bool:
    path = Path(program)
    if not path.is_absolute() or not path.exists():
        return True
    own = Path(sys.executable).parent
    return path.parent == own or path.parent.resolve() == own.resolve()


def _is_only_elsewhere(program: str) -> bool:
    """Whether a vLLM is on PATH, and none in this environment."""
    return not is_vllm_installed() and shutil.which(program) is not None


def _with_model_first(words: list[str]) -> list[str]:
    """`--model X` as MODEL, which comes before the flags."""
    parts = list(split(words, {"--model": 1}.get))
    model = next((given for given in reversed(parts) if given.flag == "--model" and given.values), None)
    if model is None or not words[0].startswith("-"):
        return words
    return [model.values[0], *(word for given in parts if given.flag != "--model" for word in given.words)]


def without_address(words: Iterable[str]) -> list[str]:
    """The words without --host, --port and --uds."""
    return [word for given in split(words, _ADDRESS.get) if given.flag not in _ADDRESS for word in given.words]


def flags_of(words: Iterable[str]) -> set[str]:
    """The names of the flags, with dashes instead of underscores."""
    return {normalise(word.partition("=")[0]) for word in words if word.startswith("-")}


def foreign_command(keys: Mapping[str, Any], words: list[str], path: KeyPath, findings: Findings) -> ForeignCommand:
    """The command of another server; what is wrong with its address is reported."""
    address = keys.get("proxy") or f"http://localhost:{PORT}"
    names_port = any(PORT in word for word in words)
    if PORT in address and not names_port:
        findings.fault(
            (*path, "cmd"),
            f"must contain {PORT}, or `proxy` must name the port on which the command listens, such as "
            "proxy: http://127.0.0.1:8080",
        )
    return ForeignCommand(
        words=tuple(words),
        address=address,
        port=_port_of(address, path, findings),
        check_endpoint=keys.get("checkEndpoint") or "/health",
        stop_words=tuple(_stop_words(keys.get("cmdStop") or "", path, findings)),
    )


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


def _stop_words(text: str, path: KeyPath, findings: Findings) -> list[str]:
    try:
        return split_command(text)
    except ValueError as err:
        findings.fault((*path, "cmdStop"), f"must be a command, got {show(text)}: {err}".rstrip("."))
        return []


def check_ports(entries: Mapping[str, ModelEntry], findings: Findings) -> None:
    """Two commands with one fixed port must not run together."""
    fixed = [entry for entry in entries.values() if entry.foreign is not None and entry.foreign.port is not None]
    by_address: dict[tuple[str, int | None], list[ModelEntry]] = {}
    for entry in fixed:
        assert entry.foreign is not None
        host = urlsplit(entry.foreign.address).hostname or ""
        by_address.setdefault(("localhost" if host in _LOCAL else host, entry.foreign.port), []).append(entry)
    for (_, port), sharing in by_address.items():
        for number, entry in enumerate(sharing):
            other = next((o for o in sharing[:number] if not _exclude_each_other(o, entry)), None)
            if other is not None:
                findings.fault(
                    ("models", entry.name, "proxy"),
                    f"must have another port than {port}, which is that of models.{other.name}: write {PORT} in cmd, "
                    "or put both into a group with swap: true",
                )


def _exclude_each_other(one: ModelEntry, other: ModelEntry) -> bool:
    return other.name in one.excludes and one.name in other.excludes


@dataclass
class _Group:
    name: str
    members: list[str] = field(default_factory=list)
    swap: bool = True
    exclusive: bool = True
    persistent: bool = False


def apply_groups(
    groups: Mapping[str, Mapping[str, Any]], entries: Mapping[str, ModelEntry], findings: Findings
) -> dict[str, ModelEntry]:
    """The models with what they exclude.

    As in llama-swap, other servers that are in no group run one at a time. Models of our own that are in no
    group are only bound by memory.
    """
    known = list(_checked_groups(groups, entries, findings))
    grouped = {member for group in known for member in group.members}
    others = [name for name, entry in entries.items() if entry.foreign is not None and name not in grouped]
    if len(others) > 1 and not groups:
        findings.notice(
            ("models",),
            f"{list_some(others)} run one at a time, as the memory that such commands need is unknown: to let them run "
            "together, put them into a group with swap: false and exclusive: false",
        )
    known.append(_Group("", others, exclusive=bool(groups)))
    kept = {member for group in known if group.persistent for member in group.members}
    kept |= {entry.name for entry in entries.values() if entry.pinned}
    result = dict(entries)
    for group in known:
        outside = set(entries) - set(group.members) - kept if group.exclusive else set()
        if not group.name:
            outside &= grouped
        for name in group.members:
            inside = set(group.members) - {name} if group.swap else set()
            result[name] = replace(entries[name], excludes=frozenset(outside | inside))
    _check_pinned(known, entries, findings)
    return result


def _checked_groups(
    groups: Mapping[str, Mapping[str, Any]], entries: Mapping[str, ModelEntry], findings: Findings
) -> Iterator[_Group]:
    group_of: dict[str, str] = {}
    for name, keys in groups.items():
        group = _Group(name, [], *(keys.get(key, default) for key, default in _GROUP_DEFAULTS))
        for number, member in enumerate(keys["members"]):
            path = ("groups", name, "members", number)
            if member not in entries:
                findings.fault(path, f"{show(member)} is no model of this file{did_you_mean(member, entries)}")
            elif member in group_of:
                findings.fault(path, f"{show(member)} is already in groups.{group_of[member]}: name it in one group")
            else:
                group_of[member] = name
                group.members.append(member)
        yield group


_GROUP_DEFAULTS: Final = (("swap", True), ("exclusive", True), ("persistent", False))


def _check_pinned(groups: Iterable[_Group], entries: Mapping[str, ModelEntry], findings: Findings) -> None:
    """A model that is never stopped for another one keeps the others of its group from starting."""
    for group in groups:
        pinned = next((name for name in group.members if entries[name].pinned), None)
        if pinned is not None and group.swap and len(group.members) > 1:
            where = f"groups.{group.name}" if group.name else "commands without a group"
            findings.fault(
                ("models", pinned, "pinned"),
                f"must be false, or no other model of {where}, of which one runs at a time, could ever start",
            )


def check_preload(names: Iterable[str], entries: Mapping[str, ModelEntry], findings: Findings) -> set[str]:
    """The models of `hooks.on_startup.preload`."""
    found = set()
    for number, name in enumerate(names):
        entry = entries.get(name) or next((e for e in entries.values() if name in e.aliases), None)
        if entry is None:
            path = ("hooks", "on_startup", "preload", number)
            findings.fault(path, f"{show(name)} is no model of this file{did_you_mean(name, entries)}")
        else:
            found.add(entry.name)
    return found


def report_unsupported(document: Mapping[str, Any], findings: Findings) -> None:
    """One notice for each key of llama-swap that has no effect here, where it is first."""
    places: dict[str, list[KeyPath]] = {}
    for key in document:
        if key in _UNUSED or key in _UNSUPPORTED:
            places.setdefault(key, []).append((key,))
    models = document.get("models")
    for name, model in models.items() if isinstance(models, dict) else ():
        for key in model if isinstance(model, dict) else ():
            is_recognised = key == "useModelName" and model.get(key) in ("", None)
            if (key in _UNUSED or key in _UNSUPPORTED) and not is_recognised:
                places.setdefault(key, []).append(("models", name, key))
    for key, paths in places.items():
        more = f" (in {len(paths)} places)" if len(paths) > 1 else ""
        findings.notice(paths[0], f"{_UNUSED.get(key) or _UNSUPPORTED[key]}{more}")
