"""Reads and checks the file of `vllm-cli serve --models`. Reports all faults at once, with line and key.

`models.schema.json` defines the keys and their types. This module checks whether the keys fit together.
`router.arguments` checks the flags with the parsers of both engines.
"""

import json
import math
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from envs.variable import parse_duration
from router.model_entry import BodyChanges, Defaults, Fault, ForeignCommand, ModelEntry, ModelsFile
from router.models_file import commands
from router.models_file.document import DocumentError, Findings, Key, KeyPath, parse, read_text, show
from router.models_file.groups import apply_groups, apply_matrix, check_preload, find_exclusions
from router.models_file.macros import complete
from router.models_file.schema import check_structure

_OUR_KEYS: Final = "VLLM_API_KEY"


def read_models_file(path: Path, defaults: Defaults) -> tuple[ModelsFile, tuple[Fault, ...]]:
    """Returns the models that have no faults, and all faults. `defaults`: values for missing keys."""
    findings = Findings(str(path))
    try:
        text = read_text(path)
        findings.root = parse(text, findings)
        if findings.root is None or findings.root.value is None:
            raise DocumentError("is empty: name the models under `models:`")
    except DocumentError as err:
        fault = Fault(str(err), err.line, "", findings.file)
        return ModelsFile({}), (*findings.faults, fault)
    findings.is_lenient = _is_of_llama_swap(findings.root.plain())
    findings.root = complete(findings.root, findings)
    document = findings.root.plain()
    wrong = check_structure(document, findings)
    content = ModelsFile({})
    if isinstance(document, dict):
        content = _Reader(document, defaults, findings, wrong).read()
    faults = sorted(dict.fromkeys(findings.faults), key=lambda fault: fault.line or 0)
    return replace(content, notices=findings.notices), tuple(faults)


def _is_of_llama_swap(document: Any) -> bool:
    """Whether a model of the file has the key `cmd`. If so, unknown keys may be keys of llama-swap."""
    models = document.get("models") if isinstance(document, dict) else None
    models = models.values() if isinstance(models, dict) else ()
    return any("cmd" in model or "proxy" in model for model in models if isinstance(model, dict))


@dataclass
class _Reader:
    """Creates the models' entries from a document. Ignores values that have faults."""

    document: dict[str, Any]
    defaults: Defaults
    findings: Findings
    wrong: set[KeyPath]

    def read(self) -> ModelsFile:
        document = self.document
        ttl_s = self._duration(("globalTTL",), self.defaults.ttl_s)
        timeout_s = self._duration(("healthCheckTimeout",), self.defaults.start_timeout_s)
        self.defaults = self.defaults._replace(ttl_s=ttl_s, start_timeout_s=timeout_s)
        models = document.get("models")
        models = models if isinstance(models, dict) else {}
        right = {name: keys or {} for name, keys in models.items() if not self._is_wrong("models", name)}
        entries = {name: self._entry(name, keys) for name, keys in right.items() if not _is_elsewhere(keys)}
        self._check_names(entries)
        # Groups may name models whose entries are wrong: these are not reported a second time, as unknown.
        known = {name: entries.get(name) or ModelEntry(name=name) for name in models}
        everyone = self._with_exclusions(known)
        entries = commands.exclude_equal_ports({name: everyone[name] for name in entries}, self.findings)
        if not self._is_wrong("hooks"):
            on_startup = document.get("hooks", {}).get("on_startup", {})
            preloaded = check_preload(on_startup.get("preload", ()), everyone, self.findings)
            for name in preloaded & entries.keys():
                entries[name] = replace(entries[name], preload=True)
        model_faults = [path for path in self.findings.fault_paths if path[:1] == ("models",)]
        faulty = {path[1] for path in model_faults if len(path) > 1}
        entries = {name: entry for name, entry in entries.items() if name not in faulty}
        return ModelsFile(entries, self._api_keys(), log_level=self._log_level())

    def _with_exclusions(self, entries: Mapping[str, ModelEntry]) -> Mapping[str, ModelEntry]:
        """Sets `excludes` of all models by `groups` or `matrix`."""
        if self._is_wrong("routing") or self._is_wrong("matrix") or ("groups",) in self.wrong:
            return entries
        kind, path, content = find_exclusions(self.document, self.findings)
        if kind == "matrix":
            return apply_matrix(content, path, entries, self.findings)
        right = {name: keys for name, keys in content.items() if not self._is_wrong(*path, name)}
        return apply_groups(right, path, entries, self.findings)

    def _is_wrong(self, *path: Key) -> bool:
        return any(each[: len(path)] == path for each in self.wrong)

    def _duration(self, path: KeyPath, default: float | None, node: Any = None) -> float | None:
        """A duration of the file in seconds. None if it is 0, which means no limit."""
        value = (self.document if node is None else node).get(str(path[-1]))
        if value is None or self._is_wrong(*map(str, path)) or value == -1:
            return default
        if isinstance(value, str) and value.strip() in ("0", "0s"):
            return None
        try:
            seconds = parse_duration(value) if isinstance(value, str) else float(value)
        except OverflowError:
            seconds = math.inf
        except ValueError as err:
            self.findings.fault(path, f"must be {err}, or 0 for no limit, got {show(value)}")
            return default
        if not math.isfinite(seconds):
            self.findings.fault(path, f"must be a finite number, got {show(value)}")
            return default
        return seconds or None

    def _entry(self, name: str, keys: Mapping[str, Any]) -> ModelEntry:
        path = ("models", name)
        pinned = bool(keys.get("pinned"))
        default_ttl_s = None if pinned else self.defaults.ttl_s
        default_idle_sleep_s = None if pinned else self.defaults.idle_sleep_s
        ttl_s = self._duration((*path, "ttl"), default_ttl_s, keys)
        idle_sleep_s = self._duration((*path, "idle_sleep"), default_idle_sleep_s, keys)
        for key, value in (("ttl", ttl_s), ("idle_sleep", idle_sleep_s)):
            if pinned and value is not None:
                self.findings.fault((*path, key), "must be left out, as `pinned: true` keeps the model")
        sleep_modes = {"enable": "sleep", "disable": "stop"}
        swap_of_llmsnap = sleep_modes.get(keys.get("sleepMode", ""), self.defaults.on_swap)
        changes = _changes(keys)
        aliases = [each if isinstance(each, str) else each["id"] for each in keys.get("aliases") or ()]
        others = dict.fromkeys((*aliases, *changes.set_by_name))
        others.pop(name, None)
        entry = ModelEntry(
            name=name,
            aliases=tuple(others),
            env=self._environment(path, keys.get("env")),
            ttl_s=ttl_s,
            idle_sleep_s=idle_sleep_s,
            on_swap=keys.get("on_swap", swap_of_llmsnap),
            sleep_levels=(keys["sleep_level"],) if "sleep_level" in keys else (1, 2),
            preload=bool(keys.get("preload")),
            pinned=pinned,
            concurrency=keys.get("concurrency") or keys.get("concurrencyLimit") or None,
            refuses_excess="concurrencyLimit" in keys,
            unlisted=bool(keys.get("unlisted")),
            changes=changes if changes != BodyChanges() else None,
            card=_card(keys),
            start_timeout_s=self._duration((*path, "start_timeout"), self.defaults.start_timeout_s, keys),
            line=self.findings.line_of(path),
        )
        if (*path, "cmd") in self.findings.fault_paths:
            return entry
        if "cmd" in keys:
            entry = self._with_command(entry, keys, path)
        elif "proxy" in keys:
            command = commands.foreign_command(keys, [], path, self.findings)
            entry = _foreign(entry, command)
        else:
            arguments = [keys.get("model") or name, *self._arguments(path, keys.get("args"))]
            entry = replace(entry, arguments=tuple(arguments), engine=keys.get("engine", "auto"))
        if entry.foreign is None and changes.model is not None:
            text = "has no effect: the model's server accepts all names of the model"
            self.findings.notice((*path, "useModelName"), text)
            entry = replace(entry, changes=replace(changes, model=None))
        return entry

    def _with_command(self, entry: ModelEntry, keys: Mapping[str, Any], path: KeyPath) -> ModelEntry:
        arguments = commands.read_command(keys["cmd"], (*path, "cmd"), self.findings)
        if arguments == []:
            self.findings.fault((*path, "cmd"), "must be a command, got only comments and blanks")
        if not arguments:
            return replace(entry, foreign=ForeignCommand(arguments=(), address="", port=None))
        served = commands.recognise(arguments)
        if served is None:
            command = commands.foreign_command(keys, arguments, path, self.findings)
            return _foreign(entry, command)
        for key in ("cmdStop", "proxy", "checkEndpoint", *commands.SLEEP_KEYS):
            if keys.get(key):
                text = "has no effect: the model is started by this program, which knows how to reach and stop it"
                self.findings.notice((*path, key), text)
        if not served.arguments:
            self.findings.fault((*path, "cmd"), "must name the model, as in: vllm serve Qwen/Qwen3-0.6B")
        env = {**served.env, **entry.env}
        return replace(entry, arguments=tuple(served.arguments), engine=served.engine, env=env)

    def _arguments(self, path: KeyPath, args: Any) -> list[str]:
        if isinstance(args, str):
            try:
                return shlex.split(args)
            except ValueError as err:
                self.findings.fault((*path, "args"), f"must be arguments, got {show(args)}: {str(err).rstrip('.')}")
                return []
        if isinstance(args, dict):
            return [argument for key, value in args.items() for argument in _flag_arguments(key, value)]
        return list(map(str, args or ()))

    def _environment(self, path: KeyPath, given: Any) -> dict[str, str]:
        pairs = given
        if not isinstance(given, dict):
            pairs = dict(argument.split("=", 1) for argument in given or ())
        variables = {}
        for name, value in pairs.items():
            variables[name] = str(value).lower() if isinstance(value, bool) else str(value)
        if _OUR_KEYS in variables:
            text = f"must not have {_OUR_KEYS}: keys are those of the server in front, --api-key-file or apiKeys"
            self.findings.fault((*path, "env"), text)
        return variables

    def _api_keys(self) -> tuple[str, ...]:
        if self._is_wrong("apiKeys"):
            return ()
        keys = tuple(self.document.get("apiKeys") or ())
        for number, key in enumerate(keys):
            if not key.strip():
                self.findings.fault(("apiKeys", number), "must not be empty")
        return keys

    def _log_level(self) -> str | None:
        level = self.document.get("logLevel")
        if level is None or self._is_wrong("logLevel"):
            return None
        return "WARNING" if level == "warn" else level.upper()

    def _check_names(self, entries: Mapping[str, ModelEntry]) -> None:
        """Reports names that belong to two models."""
        models = self.document.get("models")
        owners = {name: name for name in models} if isinstance(models, dict) else {}
        for entry in entries.values():
            for number, alias in enumerate(entry.aliases):
                path = ("models", entry.name, "aliases", number)
                if (owner := owners.setdefault(alias, entry.name)) != entry.name:
                    self.findings.fault(
                        path, f"{show(alias)} is already a name of models.{owner}: choose another alias"
                    )


def _foreign(entry: ModelEntry, command: ForeignCommand) -> ModelEntry:
    """The entry of a model that a command's server has. Such a server has one sleep level."""
    levels = (1,) if command.sleep_calls else ()
    return replace(entry, foreign=command, engine="other", sleep_levels=levels)


def _is_elsewhere(keys: Mapping[str, Any]) -> bool:
    """Whether the model belongs to another server (a `peer` of llama-swap), so that this router skips it."""
    return "peer" in keys and not {"cmd", "proxy", "model"} & keys.keys()


def _changes(keys: Mapping[str, Any]) -> BodyChanges:
    """The changes of request bodies. `filters` may not change `model`, which selects the model."""
    filters = keys.get("filters") or {}
    stripped = filters.get("stripParams") or filters.get("strip_params") or ""
    names = [name.strip() for name in stripped.split(",")]
    by_name = filters.get("setParamsByID") or {}
    return BodyChanges(
        model=keys.get("useModelName") or None,
        strip=tuple(name for name in names if name not in ("", "model")),
        set=_without_model(filters.get("setParams") or {}),
        set_by_name={name: _without_model(params) for name, params in by_name.items()},
    )


def _without_model(params: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in params.items() if key.removesuffix("?") != "model"}


def _card(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The members that the file adds to the model in /v1/models, as in llama-swap."""
    card = {key: keys[key].strip() for key in ("name", "description") if keys.get(key)}
    if keys.get("metadata"):
        return {**card, "meta": {"llamaswap": keys["metadata"]}}
    return card


def _flag_arguments(key: str, value: Any) -> Iterable[str]:
    """The arguments of a flag that is given as a key, such as `max-model-len: 8k`, as in --config."""
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
