"""The settings of a router for several models (`serve --models FILE`, `serve A B`). Collects all faults."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from base.wording import format_bytes, list_some
from router.arguments.model_check import CheckedModel, ModelCheck, folder_of, key_of, served_names
from router.arguments.router_arguments import SeveralModels
from router.model_entry import Defaults, Fault, ModelEntry, ModelsFile, ModelsFileError, Notice
from router.model_memory import MemoryMeter, default_budget
from router.router import RouterOptions
from startup.arguments.errors import InputError
from startup.arguments.table import split_flags
from startup.errors import CommandLineError
from startup.session.preflight.report import Finding, PreflightReport
from startup.standby.sockets import TEMPLATE_KINDS

logger = logging.getLogger(__name__)

_MAX_AT_ONCE: Final = 8
"""The most preflights at once. For models that are not on disk, preflights wait for the hub."""
_OF_MACHINE: Final = ("environment", "cache", "shm")
"""Checks of the machine, whose findings are the same for all models."""


@dataclass(frozen=True)
class CheckedModels:
    """All models with their faults and notices."""

    models: Mapping[str, CheckedModel]
    faults: tuple[Fault, ...] = ()
    notices: tuple[Notice, ...] = ()
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    log_level: str | None = None

    @property
    def entries(self) -> dict[str, ModelEntry]:
        return {name: model.entry for name, model in self.models.items()}

    def report(self, duration_s: float) -> PreflightReport:
        """One report about all models, in the form for one model. Faults of the file count as `usage`."""
        found = (finding for report in self.reports().values() for finding in report.findings)
        return PreflightReport(tuple(dict.fromkeys(found)), duration_s)

    def reports(self) -> dict[str, PreflightReport]:
        """Name of a model -> its report. The name "" stands for the file and for faults of several models."""
        found: dict[str, list[Finding]] = {name: [] for name in ("", *self.models)}
        owners = {fault: name for name, model in self.models.items() for fault in model.faults}
        for fault in self.faults:
            found[owners.get(fault, "")].append(Finding(fault.check, "error", str(fault)))
        found[""] += [Finding("models_file", "warning", str(notice)) for notice in self.notices]
        for name, model in self.models.items():
            others = (finding for finding in model.findings if finding.severity != "error")
            found[name] += [each._replace(message=f"{name}: {each.message}") for each in others]
        return {name: PreflightReport(tuple(findings), 0.0) for name, findings in found.items()}


class ModelsReader:
    """Reads and checks the models of a command line, at the start and when the file changes."""

    def __init__(self, several: SeveralModels) -> None:
        self._config = several.config
        self._several = several
        file = several.config.several.models
        self.path = Path(file) if file is not None and not several.models else None
        """The file of models. None if the command line names the models."""
        self.last = CheckedModels({})
        """The result of the last check without faults."""
        self._given: Mapping[str, ModelEntry] = {}
        """Name -> the entry as the file has it, before defaults are added."""

    def read(self) -> CheckedModels:
        """Reads and checks all models. Returns faults instead of raising them."""
        content, faults = self._content()
        checked = self._check(content, faults)
        if not checked.faults:
            self.last = checked
            self._given = content.entries
        return checked

    def _content(self) -> tuple[ModelsFile, tuple[Fault, ...]]:
        if self.path is None:
            return ModelsFile(self._entries_of_arguments()), ()
        from router.models_file.reader import read_models_file  # noqa: PLC0415 - imports jsonschema and yaml

        return read_models_file(self.path, self._defaults)

    def reload(self) -> Mapping[str, ModelEntry]:
        """Reads and checks the models of the file again. Raises ModelsFileError for faults."""
        former = self.last
        read = self.read()
        if read.faults:
            raise ModelsFileError(read.faults)
        for notice in set(read.notices) - set(former.notices):
            logger.warning("%s", notice)
        if read.api_keys != former.api_keys:
            logger.warning("%s: apiKeys has changed, which takes effect at the next start of the server", self.path)
        return read.entries

    def router_options(self, checked: CheckedModels) -> RouterOptions:
        """The settings of a router for the models that `read` has checked.

        Raises:
            CommandLineError: a key, a value or a flag is not accepted. The message lists all faults.
            ModelsFileError: the preflights have found faults.
        """
        if checked.faults:
            err = ModelsFileError(checked.faults)
            raise CommandLineError(str(err)) if err.has_usage_error else err
        config = self._config
        network = config.server.network
        network = replace(network, api_keys=(*network.api_keys, *checked.api_keys))
        config = replace(config, server=replace(config.server, network=network))
        if checked.log_level is not None and not self._several.has_log_level:
            config = replace(config, logging_level=checked.log_level)
        return RouterOptions(
            config=config,
            entries=checked.entries,
            reload=None if self.path is None else self.reload,
            path=self.path,
            find_template_kinds=self.template_kinds,
            find_model=self.find_model,
            check_again=self.check_again,
        )

    def check_again(self, entry: ModelEntry) -> ModelEntry:
        """The entry after a further check without preflight. The former entry if the check finds faults."""
        unchecked = self._given.get(entry.name)
        if unchecked is None:
            return entry
        file = "" if self.path is None else str(self.path)
        checked = ModelCheck(replace(self._config, preflight="off"), self._several, file).run(unchecked)
        if checked.faults:
            return entry
        self.last = replace(self.last, models={**self.last.models, entry.name: checked})
        return checked.entry

    def find_model(self, name: str) -> str | None:
        """The folder of a model. None if the model is not on disk."""
        model = self.last.models.get(name)
        return None if model is None else folder_of(model.request)

    def template_kinds(self) -> tuple[str, ...]:
        """The kinds of standbys that the models need."""
        wanted = {model.template_kind for model in self.last.models.values()}
        return tuple(kind for kind in TEMPLATE_KINDS if kind in wanted)

    @property
    def _defaults(self) -> Defaults:
        config = self._config
        return Defaults(
            ttl_s=config.idle_stop_s,
            idle_sleep_s=config.idle_sleep_s,
            on_swap=config.several.on_swap,
            start_timeout_s=config.startup_timeout_s,
        )

    def _entries_of_arguments(self) -> dict[str, ModelEntry]:
        entries: dict[str, ModelEntry] = {}
        for argument in self._several.models:
            name = next(iter(served_names(split_flags(self._several.defaults))), "") or _name_of(argument)
            if name in entries:
                first = entries[name].arguments[0]
                text = "is given twice" if first == argument else f"has the name {name!r}, as has {first}"
                raise InputError(f"{argument} {text}: for names of your own, write a file for --models.")
            entries[name] = ModelEntry(name=name, arguments=(argument,), **self._defaults._asdict())
        return entries

    def _check(self, content: ModelsFile, faults_of_file: Sequence[Fault]) -> CheckedModels:
        """Completes and checks models. Models that are unchanged and had no faults are not checked again."""
        file = "" if self.path is None else str(self.path)
        check = ModelCheck(self._config, self._several, file)
        entries = list(content.entries.values())

        def run(entry: ModelEntry) -> CheckedModel:
            former = self.last.models.get(entry.name) if self._given.get(entry.name) == entry else None
            if former is None:
                return check.run(entry)
            return former._replace(entry=replace(former.entry, line=entry.line))

        with ThreadPoolExecutor(min(_MAX_AT_ONCE, max(1, len(entries))), thread_name_prefix="preflight") as threads:
            checked = list(threads.map(run, entries))
        faults = [*faults_of_file, *_once(fault for model in checked for fault in model.faults)]
        faults += _double_names(checked, file)
        faults += self._without_room(checked, file)
        faults.sort(key=lambda fault: fault.line or 0)
        models = {model.entry.name: model for model in checked}
        notices = (*content.notices, *(notice for model in checked for notice in model.notices))
        return CheckedModels(models, tuple(faults), notices, content.api_keys, content.log_level)

    def _without_room(self, models: Sequence[CheckedModel], file: str) -> Iterator[Fault]:
        """Yields a fault for each model that the limits would never let start."""
        limits = self._config.several
        requests = {model.entry.name: model.request for model in models}
        meter = MemoryMeter(lambda name: folder_of(requests[name]))
        limit = limits.memory_budget_bytes
        budget = default_budget() if limit is None and self._config.preflight == "auto" else limit
        for entry in (model.entry for model in models if not model.faults):
            need = meter.need_of(entry).ram_bytes
            if budget is not None and need > budget:
                whose = "--memory-budget is" if limit is not None else "this machine has"
                remedy = " or limit its KV cache, such as by --gpu-memory-utilization" if entry.engine == "vllm" else ""
                text = f"needs about {format_bytes(need)} of memory, and {whose} {format_bytes(budget)}: leave it out"
                yield Fault(text + remedy, entry.line, key_of(entry, file), file, "memory")
        pinned = [model.entry.name for model in models if model.entry.pinned]
        if limits.max_running is not None and len(models) > len(pinned) >= limits.max_running:
            text = f"--max-running {limits.max_running} leaves no room beside the pinned models {list_some(pinned)}"
            yield Fault(text, file=file)


def _name_of(argument: str) -> str:
    """The last part of a path or an address. A link is not followed. A hub id stays whole."""
    if "://" in argument:
        return urlsplit(argument).path.strip("/").rpartition("/")[2] or argument
    path = Path(argument).expanduser()
    is_path = path.is_dir() or argument.startswith(("/", "./", "../", "~"))
    return os.path.basename(os.path.abspath(path)) if is_path else argument  # noqa: PTH100, PTH119 - follows no link


def _once(faults: Iterable[Fault]) -> list[Fault]:
    """Merges equal faults that concern the machine, or a program that several models lack."""
    faults = [replace(f, line=None, key="") if f.check in _OF_MACHINE else f for f in faults]
    lacking: dict[str, list[str]] = {}
    for fault in faults:
        if fault.check == "program":
            lacking.setdefault(fault.text, []).append(fault.key)
    several = {text: list_some(keys) for text, keys in lacking.items() if len(keys) > 1}
    merged = (replace(f, line=None, key=several[f.text]) if f.text in several else f for f in faults)
    return list(dict.fromkeys(merged))


def _double_names(models: Sequence[CheckedModel], file: str) -> Iterator[Fault]:
    """Reports names that two models have through adapters or --served-model-name, not through the file."""
    owners: dict[str, str] = {}
    for entry in (model.entry for model in models):
        for name in dict.fromkeys(entry.request_names):
            if owners.setdefault(name, entry.name) != entry.name:
                text = f"answers to {name!r}, as does {owners[name]}: choose another alias or served name"
                yield Fault(text, entry.line, key_of(entry, file), file)
