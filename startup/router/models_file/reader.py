"""Reads and checks the file of `vllm-cli serve --models`: all its faults at once, each with its line and key.

`models.schema.json` decides which keys there are and of which type; this module, what they mean together.
The flags in the file are checked by `vllm_cli.flags.router_options`, with the parsers of both engines.
"""

import json
import math
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from envs import foreign
from envs.suggestion import did_you_mean
from envs.variable import parse_duration
from startup.router.model_entry import Fault, ForeignCommand, ModelEntry, ModelsFile
from startup.router.models_file import commands
from startup.router.models_file.document import DocumentError, Findings, KeyPath, parse, read_text, show
from startup.router.models_file.groups import apply_groups, check_preload
from startup.router.models_file.schema import check_structure, report_unsupported

_MACRO: Final = re.compile(r"\$\{([A-Za-z0-9_.-]+)\}")
_ENVIRONMENT: Final = "env."
_MAX_TEXT: Final = 1 << 16
"""Characters of a text after its macros are replaced; each level of macros could double it."""
_KEEPS_PORT: Final = ("cmd", "proxy", "env", "checkEndpoint")
_KEEPS_PID: Final = ("cmdStop",)
_COMMANDS: Final = ("cmd", "cmdStop")
_EXPANDED: Final = ("model", "args", "cmd", "cmdStop", "proxy", "checkEndpoint", "env")
"""Keys of a model in whose texts macros are replaced."""
_OF_ROUTER: Final = ("--host", "--port", "--uds")
_KEYS: Final = ("--api-key", "--api-key-file", "--api-key-everywhere")
_TLS: Final = "--ssl-"
_OUR_KEYS: Final = "VLLM_API_KEY"


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


class Defaults(NamedTuple):
    """What a model has if the file says nothing."""

    ttl_s: float | None = None
    start_timeout_s: float | None = None
    engine: str = "auto"


def read_models_file(path: Path, defaults: Defaults, name: str | None = None) -> tuple[ModelsFile, tuple[Fault, ...]]:
    """The models that have no faults, and all faults of the others.

    Args:
        path: the file.
        defaults: for keys that the file does not have.
        name: the file as messages name it, if not by its path.
    """
    findings = Findings(name or str(path))
    try:
        text = read_text(path)
        findings.root = parse(text, findings)
        if findings.root is None or findings.root.value is None:
            raise DocumentError("is empty: name the models under `models:`")
    except DocumentError as err:
        return ModelsFile({}), (*findings.faults, Fault(str(err), err.line, "", findings.file))
    document = findings.root.plain()
    wrong = check_structure(document, findings)
    content = _Reader(document, defaults, findings, wrong).read() if isinstance(document, dict) else ModelsFile({})
    faults = sorted(dict.fromkeys(findings.faults), key=lambda fault: fault.line or 0)
    return replace(content, notices=tuple(findings.notices)), tuple(faults)


@dataclass
class _Reader:
    """Makes entries of a document; what has structural faults is left out."""

    document: dict[str, Any]
    defaults: Defaults
    findings: Findings
    wrong: set[KeyPath]
    preloaded: set[str] = field(default_factory=set)

    def read(self) -> ModelsFile:
        document = self.document
        report_unsupported(document, self.findings)
        ttl_s = self._duration(("globalTTL",), self.defaults.ttl_s)
        timeout_s = self._duration(("healthCheckTimeout",), self.defaults.start_timeout_s)
        self.defaults = self.defaults._replace(ttl_s=ttl_s, start_timeout_s=timeout_s)
        models = document.get("models")
        models = models if isinstance(models, dict) else {}
        right = [name for name in models if not self._is_wrong("models", name)]
        entries = {name: self._entry(name, models[name] or {}) for name in right}
        self._check_names(entries)
        everyone = {name: entries.get(name) or ModelEntry(name=name) for name in models}
        groups = document.get("groups")
        groups = groups if isinstance(groups, dict) else {}
        groups = {name: keys for name, keys in groups.items() if not self._is_wrong("groups", name)}
        grouped = apply_groups(groups, everyone, self.findings)
        entries = {name: grouped[name] for name in entries}
        commands.check_ports(entries, self.findings)
        if not self._is_wrong("hooks"):
            names = ((document.get("hooks") or {}).get("on_startup") or {}).get("preload", ())
            loaded = check_preload(names, everyone, self.findings)
            entries = {n: replace(e, preload=e.preload or n in loaded) for n, e in entries.items()}
        faulty = {path[1] for path in self.findings.fault_paths if path[:1] == ("models",) and len(path) > 1}
        entries = {name: entry for name, entry in entries.items() if name not in faulty}
        return ModelsFile(entries, self._api_keys(), log_level=self._log_level())

    def _is_wrong(self, *path: str) -> bool:
        return any(each[: len(path)] == path for each in self.wrong)

    def _duration(self, path: KeyPath, default: float | None, node: Any = None) -> float | None:
        """Seconds; None for 0, which stands for no limit."""
        value = (self.document if node is None else node).get(str(path[-1]))
        if value is None or self._is_wrong(*map(str, path)) or value == -1:
            return default
        if isinstance(value, str) and value.strip() in ("0", "0s"):
            return None
        try:
            seconds = parse_duration(value) if isinstance(value, str) else float(value)
        except ValueError as err:
            self.findings.fault(path, f"must be {err}, or 0 for no limit, got {show(value)}")
            return default
        if not math.isfinite(seconds):
            self.findings.fault(path, f"must be a finite number, got {show(value)}")
            return default
        return seconds or None

    def _entry(self, name: str, keys: Mapping[str, Any]) -> ModelEntry:
        path = ("models", name)
        keys = self._expanded(name, keys)
        pinned = bool(keys.get("pinned"))
        ttl_s = self._duration((*path, "ttl"), None if pinned else self.defaults.ttl_s, keys)
        if pinned and ttl_s is not None:
            self.findings.fault((*path, "ttl"), "must be left out, as `pinned: true` keeps the model")
        entry = ModelEntry(
            name=name,
            aliases=tuple(each if isinstance(each, str) else each["id"] for each in keys.get("aliases") or ()),
            env=self._environment(path, keys.get("env")),
            ttl_s=ttl_s,
            preload=bool(keys.get("preload")),
            pinned=pinned,
            concurrency=keys.get("concurrency") or keys.get("concurrencyLimit") or None,
            unlisted=bool(keys.get("unlisted")),
            start_timeout_s=self._duration((*path, "start_timeout"), self.defaults.start_timeout_s, keys),
            line=self.findings.line_of(path),
        )
        if (*path, "cmd") in self.findings.fault_paths:
            return entry
        if "cmd" in keys:
            entry = self._with_command(entry, keys, path)
        else:
            words = [keys.get("model") or name, *self._words(path, keys.get("args"))]
            entry = replace(entry, words=tuple(words), engine=keys.get("engine", self.defaults.engine))
        if entry.foreign is None:
            self._check_words(entry, path, "cmd" if "cmd" in keys else "args")
        return entry

    def _with_command(self, entry: ModelEntry, keys: Mapping[str, Any], path: KeyPath) -> ModelEntry:
        try:
            words = commands.split_command(keys["cmd"])
        except ValueError as err:
            text = f"must be a command, got {show(keys['cmd'])}: {str(err).rstrip('.')}"
            self.findings.fault((*path, "cmd"), text)
            return replace(entry, foreign=ForeignCommand(words=(), address="", port=None))
        if not words:
            self.findings.fault((*path, "cmd"), "must be a command, got only comments and blanks")
            return replace(entry, foreign=ForeignCommand(words=(), address="", port=None))
        served = commands.recognise(words)
        if served is None:
            command = commands.foreign_command(keys, words, path, self.findings)
            return replace(entry, foreign=command, engine="other")
        if left := [key for key in ("cmdStop", "proxy", "checkEndpoint") if keys.get(key)]:
            text = "has no effect: the model is started by this program, which knows how to reach and stop it"
            self.findings.notice((*path, left[0]), text)
        if not served.words:
            self.findings.fault((*path, "cmd"), "must name the model, as in: vllm serve Qwen/Qwen3-0.6B")
        engine = self.defaults.engine if served.engine == "auto" else served.engine
        return replace(entry, words=tuple(served.words), engine=engine, env={**served.env, **entry.env})

    def _words(self, path: KeyPath, args: Any) -> list[str]:
        """The flags as words."""
        if isinstance(args, str):
            try:
                return shlex.split(args)
            except ValueError as err:
                self.findings.fault((*path, "args"), f"must be words, got {show(args)}: {str(err).rstrip('.')}")
                return []
        if isinstance(args, dict):
            return [word for key, value in args.items() for word in _flag_words(key, value)]
        return list(map(str, args or ()))

    def _environment(self, path: KeyPath, given: Any) -> dict[str, str]:
        pairs = given.items() if isinstance(given, dict) else (each.split("=", 1) for each in given or ())
        variables = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in pairs}
        if _OUR_KEYS in variables:
            text = f"must not have {_OUR_KEYS}: keys are those of the server in front, --api-key-file or apiKeys"
            self.findings.fault((*path, "env"), text)
        return variables

    def _check_words(self, entry: ModelEntry, path: KeyPath, key: str) -> None:
        """The address, TLS and keys are those of the router."""
        given = commands.flags_of(entry.words)
        place = (*path, key)
        if address := [flag for flag in _OF_ROUTER if flag in given]:
            text = f"must not have {address[0]}: requests for all models come to the port of the command line"
            self.findings.fault(place, text)
        for flag in sorted(given):
            if flag in _KEYS or flag.startswith(_TLS):
                text = f"must not have {flag}: give it on the command line, for all models" + (
                    ", or use apiKeys" if flag in _KEYS else ""
                )
                self.findings.fault(place, text)

    def _expanded(self, name: str, keys: Mapping[str, Any]) -> Mapping[str, Any]:
        """The keys of a model without macros."""
        if self._is_wrong("macros"):
            texts: dict[str, object] = {}
        else:
            texts = dict(self.document.get("macros") or {})
        texts |= {"MODEL_ID": name} | dict(keys.get("macros") or {})
        expanded = dict(keys)
        for key in _EXPANDED:
            if key in keys:
                kept = ("PORT",) if key in _KEEPS_PORT else ("PORT", "PID") if key in _KEEPS_PID else ()
                macros = Macros(texts, kept)
                text = keys[key]
                if key in _COMMANDS and isinstance(text, str):
                    text = commands.without_comments(text)
                expanded[key] = self._expand(("models", name, key), text, macros.expand)
        return expanded

    def _expand(self, path: KeyPath, value: Any, expand: Callable[[str], str]) -> Any:
        match value:
            case str():
                try:
                    return expand(value)
                except MacroError as err:
                    self.findings.fault(path, str(err))
                    return "-"
            case list():
                return [self._expand((*path, number), each, expand) for number, each in enumerate(value)]
            case dict():
                return {key: self._expand((*path, key), each, expand) for key, each in value.items()}
        return value

    def _api_keys(self) -> tuple[str, ...]:
        if self._is_wrong("apiKeys"):
            return ()
        macros = Macros(self.document.get("macros") or {})
        given = self.document.get("apiKeys") or ()
        keys = [self._expand(("apiKeys", n), each, macros.expand) for n, each in enumerate(given)]
        for number, key in enumerate(keys):
            if not key.strip():
                self.findings.fault(("apiKeys", number), "must not be empty")
        return tuple(keys)

    def _log_level(self) -> str | None:
        level = self.document.get("logLevel")
        return None if level is None or self._is_wrong("logLevel") else {"warn": "WARNING"}.get(level, level.upper())

    def _check_names(self, entries: Mapping[str, ModelEntry]) -> None:
        """Each name of a request stands for one model."""
        models = self.document.get("models")
        owners = {name: name for name in models} if isinstance(models, dict) else {}
        for entry in entries.values():
            for number, alias in enumerate(entry.aliases):
                path = ("models", entry.name, "aliases", number)
                if alias in owners:
                    owner = owners[alias]
                    what = "its own name" if owner == entry.name else f"a name of models.{owner}"
                    self.findings.fault(path, f"{show(alias)} is already {what}: choose another alias")
                owners.setdefault(alias, entry.name)


def _flag_words(key: str, value: Any) -> Iterable[str]:
    """The words of `max-model-len: 8k`, as in the file of --config."""
    flag = f"--{key.lstrip('-')}" if not key.startswith("-") or key.startswith("--") else key
    match value:
        case None:
            return ()
        case True:
            return (flag,)
        case False:
            return (f"--{flag[5:]}",) if flag.startswith("--no-") else (f"--no-{flag.lstrip('-')}",)
        case list() if all(isinstance(each, str | int | float) for each in value):
            return (flag, *map(str, value)) if value else ()
        case dict() | list():
            return (f"{flag}={json.dumps(value)}",)
    return (f"{flag}={value}",)
