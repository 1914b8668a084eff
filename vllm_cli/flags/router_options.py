"""The settings of a router (`serve --models FILE`, `serve A B`), and the check of each model.

Each model's command line is read by the parser of its engine, and its preflight runs; what they report gets
the line of the model.
"""

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import click

from envs.redaction import is_secret_flag
from envs.registry import env
from envs.variable import EnvError
from server.errors import ConfigError
from server.lora_config import LoraModule
from server.machine.memory import read_memory
from server.wording import format_bytes, list_some
from startup.config import StartupConfig
from startup.engine.installed import require_embedded_engine
from startup.errors import CommandLineError, StartupError
from startup.model.file_plan import plan_files
from startup.model.request import ModelRequest
from startup.preflight.report import USAGE, Finding, PreflightReport
from startup.preflight.run import PreflightOptions, run_preflight
from startup.router.model_entry import Fault, ModelEntry, ModelsFile, ModelsFileError, Notice
from startup.router.model_memory import MemoryMeter, default_budget
from startup.router.models_file import Defaults, read_models_file
from startup.router.router import RouterOptions
from startup.router.scheduler_terms import SchedulerLimits
from startup.serve_words import ServeWords, is_flag_like
from startup.session import ListenAddress
from startup.standby.kinds import KINDS, kind_for
from startup.vllm.command_line import CommandLine
from startup.vllm.installed import require_vllm
from startup.vllm.preflight.run import run_preflight as run_vllm_preflight
from vllm_cli.errors import InputError
from vllm_cli.flags.engine_choice import choose_engine
from vllm_cli.flags.router_words import RouterWords, fault_of_model
from vllm_cli.flags.secret_flags import secrets_as_variables, split_flags, without_flags
from vllm_cli.flags.serve_command import CONFIG_OF_START, IS_QUIET, VLLM, ServeCommand, SeveralModels, serve_parameters
from vllm_cli.version import VERSION

logger = logging.getLogger(__name__)

_ENGINE: Final = "--engine"
_SERVED_NAME: Final = "--served-model-name"
_LORA_MODULES: Final = "--lora-modules"
_QUIET_FLAG: Final = "--disable-uvicorn-access-log"
"""For each model: the router logs the requests, and knows the client."""
_MAX_AT_ONCE: Final = 8
"""Preflights that run at once: those of models that are not on disk wait for the hub."""
_OF_MACHINE: Final = ("environment", "cache", "shm")
"""Checks whose findings are the same for all models."""


class CheckedModel(NamedTuple):
    """An entry with its complete command line, and what was found."""

    entry: ModelEntry
    faults: tuple[Fault, ...] = ()
    findings: tuple[Finding, ...] = ()
    """Of its preflight; the errors among them are faults, too."""
    request: ModelRequest | None = None
    standby_kind: str | None = None


@dataclass(frozen=True)
class CheckedModels:
    """All models, and everything that is wrong with them."""

    models: Mapping[str, CheckedModel]
    faults: tuple[Fault, ...] = ()
    notices: tuple[Notice, ...] = ()
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    log_level: str | None = None

    @property
    def entries(self) -> dict[str, ModelEntry]:
        """By name."""
        return {name: model.entry for name, model in self.models.items()}

    def report(self, duration_s: float) -> PreflightReport:
        """As of one model; the check of a fault of the file is `usage`."""
        found = [Finding(fault.check, "error", str(fault)) for fault in self.faults]
        found += [Finding("models_file", "warning", str(notice)) for notice in self.notices]
        for model in self.models.values():
            others = (finding for finding in model.findings if finding.severity != "error")
            found += [each._replace(message=f"{model.entry.name}: {each.message}") for each in others]
        return PreflightReport(tuple(dict.fromkeys(found)), duration_s)


class ModelsReader:
    """Reads and checks the models of one command line: at the start, and again when the file changes."""

    def __init__(self, several: SeveralModels) -> None:
        self._config = several.config
        self._words = several.words
        file = several.config.several.models
        self.path = Path(file) if file is not None and not several.words.models else None
        """The file; None for models that the command line names."""
        self.last = CheckedModels({})
        """Without faults."""
        self._given: Mapping[str, ModelEntry] = {}
        """Its entries as the file has them, without defaults."""

    def read(self) -> CheckedModels:
        """Never raises for a fault."""
        content, faults = self._content()
        checked = self._check(content, faults)
        if not checked.faults:
            self.last = checked
            self._given = content.entries
        return checked

    def _content(self) -> tuple[ModelsFile, tuple[Fault, ...]]:
        if self.path is None:
            return ModelsFile(self._entries_of_words()), ()
        return read_models_file(self.path, self._defaults)

    def reload(self) -> Mapping[str, ModelEntry]:
        """The models of the file as it is now; raises ModelsFileError for its faults."""
        former = self.last
        read = self.read()
        if read.faults:
            raise ModelsFileError(read.faults)
        for notice in set(read.notices) - set(former.notices):
            logger.warning("%s", notice)
        if read.api_keys != former.api_keys:
            logger.warning("%s: apiKeys has changed, which takes effect at the next start of the server", self.path)
        return read.entries

    def find_model(self, name: str) -> str | None:
        """The folder of a model that is on disk."""
        model = self.last.models.get(name)
        return None if model is None else _folder_of(model.request)

    @property
    def _defaults(self) -> Defaults:
        config = self._config
        return Defaults(ttl_s=config.idle_stop_s, start_timeout_s=config.startup_timeout_s)

    def _entries_of_words(self) -> dict[str, ModelEntry]:
        entries: dict[str, ModelEntry] = {}
        for word in self._words.models:
            name = _name_of(word)
            if name in entries:
                first = entries[name].words[0]
                text = "is given twice" if first == word else f"has the name {name!r}, as has {first}"
                raise InputError(f"{word} {text}: for names of your own, write a file for --models.")
            entries[name] = ModelEntry(
                name=name,
                words=(word,),
                ttl_s=self._defaults.ttl_s,
                start_timeout_s=self._defaults.start_timeout_s,
            )
        return entries

    def _check(self, content: ModelsFile, faults_of_file: Sequence[Fault]) -> CheckedModels:
        """Completes and checks all models but those that have not changed since they were right."""
        file = "" if self.path is None else str(self.path)
        check = _ModelCheck(self._config, self._words, file)
        entries = list(content.entries.values())

        def run(entry: ModelEntry) -> CheckedModel:
            former = self.last.models.get(entry.name) if self._given.get(entry.name) == entry else None
            if former is None:
                return check.run(entry)
            return former._replace(entry=replace(former.entry, line=entry.line))

        with ThreadPoolExecutor(min(_MAX_AT_ONCE, max(1, len(entries))), thread_name_prefix="preflight") as threads:
            checked = list(threads.map(run, entries))
        faults = [*faults_of_file, *_once(fault for model in checked for fault in model.faults)]
        faults += [*_double_names(checked, file), *self._without_room(checked, file)]
        faults.sort(key=lambda fault: fault.line or 0)
        models = {model.entry.name: model for model in checked}
        return CheckedModels(models, tuple(faults), content.notices, content.api_keys, content.log_level)

    def _without_room(self, models: Sequence[CheckedModel], file: str) -> Iterator[Fault]:
        """Models that could never start."""
        limits = self._config.several
        requests = {model.entry.name: model.request for model in models}
        meter = MemoryMeter(lambda name: _folder_of(requests[name]))
        given = limits.memory_budget_bytes
        budget = default_budget() if given is None and self._config.preflight == "auto" else given
        for entry in (model.entry for model in models if not model.faults):
            need = meter.need_of(entry).ram_bytes
            if budget is not None and need > budget:
                whose = "--memory-budget is" if given is not None else "this machine has"
                remedy = " or limit its KV cache, such as by --gpu-memory-utilization" if entry.engine == "vllm" else ""
                text = f"needs about {format_bytes(need)} of memory, and {whose} {format_bytes(budget)}: leave it out"
                yield Fault(text + remedy, entry.line, _key(entry, file), file, "memory")
        pinned = [model.entry.name for model in models if model.entry.pinned]
        if limits.max_running is not None and len(models) > len(pinned) >= limits.max_running:
            text = f"--max-running {limits.max_running} leaves no room beside the pinned models {list_some(pinned)}"
            yield Fault(text, file=file)


def router_options(several: SeveralModels, reader: ModelsReader, checked: CheckedModels) -> RouterOptions:
    """The settings of a router.

    Raises:
        CommandLineError: a key, a value or a flag is not accepted; the message lists all faults.
        ModelsFileError: the preflights found faults.
    """
    if checked.faults:
        err = ModelsFileError(checked.faults)
        raise CommandLineError(str(err)) if err.has_usage_error else err
    config, limits = several.config, several.config.several
    network = config.server.network
    logs = config.logs
    if checked.log_level is not None and not several.has_log_level:
        logs = replace(logs, level=checked.log_level)
    return RouterOptions(
        address=ListenAddress(network.host, network.port, network.uds, config.server.tls.ssl_certfile is not None),
        tls=config.server.tls,
        network=replace(network, api_keys=(*network.api_keys, *checked.api_keys)),
        logs=logs,
        is_access_logged=not config.server.logging.disable_access_log,
        entries=checked.entries,
        reload=None if reader.path is None else reader.reload,
        path=reader.path,
        limits=SchedulerLimits(
            memory_budget_bytes=limits.memory_budget_bytes,
            max_running=limits.max_running,
            max_wait_s=limits.max_wait_s,
            max_waiting=limits.max_waiting,
        ),
        find_standby_kinds=lambda: _standby_kinds(config, reader.last.models.values()),
        find_model=reader.find_model,
        version=VERSION,
    )


def _standby_kinds(config: StartupConfig, models: Iterable[CheckedModel]) -> tuple[str, ...]:
    if config.idle_warm == "off":
        return ()
    wanted = {model.standby_kind for model in models}
    return tuple(kind for kind in KINDS if kind in wanted)


def _folder_of(request: ModelRequest | None) -> str | None:
    with suppress(StartupError, OSError, ValueError):
        folder = None if request is None else plan_files(request).model_folder
        return None if folder is None else str(folder)
    return None


def _name_of(word: str) -> str:
    """The last part of a folder's path or of an address; a hub id as it is."""
    if "://" in word:
        return urlsplit(word).path.strip("/").rpartition("/")[2] or word
    path = Path(word).expanduser()
    return path.resolve().name if path.is_dir() or word.startswith(("/", "./", "../", "~")) else word


def _once(faults: Iterable[Fault]) -> list[Fault]:
    """Faults of the machine are not repeated for each model."""
    general = (replace(f, line=None, key="") if f.check in _OF_MACHINE else f for f in faults)
    return list(dict.fromkeys(general))


def _double_names(models: Sequence[CheckedModel], file: str) -> Iterator[Fault]:
    """Names of --served-model-name and of adapters, which the file itself does not show."""
    owners: dict[str, str] = {}
    for entry in (model.entry for model in models):
        for name in dict.fromkeys(entry.request_names):
            if owners.setdefault(name, entry.name) != entry.name:
                text = f"answers to {name!r}, as does {owners[name]}: choose another alias or served name"
                yield Fault(text, entry.line, _key(entry, file), file)


def _key(entry: ModelEntry, file: str) -> str:
    return f"models.{entry.name}" if file else entry.name


class _ModelCheck:
    """Completes the command line of a model and checks it, on any thread."""

    def __init__(self, config: StartupConfig, words: RouterWords, file: str) -> None:
        self._config = config
        self._defaults = words.defaults
        self._engine = next((g.values[-1] for f, g in split_flags(words.own) if f and f.name == _ENGINE), None)
        self._file = file

    def run(self, entry: ModelEntry) -> CheckedModel:
        """Never raises for a fault."""
        if entry.foreign is not None:
            return CheckedModel(entry, tuple(self._check_program(entry)))
        try:
            return self._check(self._completed(entry))
        except click.ClickException as err:
            text = err.format_message()
        except click.exceptions.Exit:
            text = "must not have --help or --version"
        except (ConfigError, EnvError) as err:
            text = str(err)
        except StartupError as err:
            return CheckedModel(entry, (self._fault(entry, str(err), "engine"),))
        return CheckedModel(entry, (self._fault(entry, text.rstrip(".")),))

    def _fault(self, entry: ModelEntry, text: str, check: str = USAGE) -> Fault:
        return Fault(text, entry.line, _key(entry, self._file), self._file, check)

    def _check_program(self, entry: ModelEntry) -> Iterator[Fault]:
        assert entry.foreign is not None
        program = entry.foreign.words[0]
        if shutil.which(program, path=entry.env.get("PATH")) is None:
            text = f"the program {program!r} of cmd is not found: install it, or give its path"
            yield self._fault(entry, text, "program")

    def _completed(self, entry: ModelEntry) -> ModelEntry:
        """With defaults, engine, names, and without secrets; raises InputError."""
        own = list(entry.words)
        _reject_flags(own)
        engine = _last_value(own, _ENGINE) or (entry.engine if entry.engine != "auto" else None) or self._engine
        engine = choose_engine((_ENGINE, engine) if engine else ())
        begin = int(bool(own) and not is_flag_like(own[0]))
        words = [*own[:begin], *self._defaults, *own[begin:]]
        words, variables = secrets_as_variables(words)
        names = _served_names(words)
        words = without_flags(words, (_ENGINE, _SERVED_NAME, _QUIET_FLAG))
        if any(is_secret_flag(given.flag) and any(given.values) for _, given in split_flags(words)):
            raise InputError("a key on the command line of a model can be read by others: use `env` for it")
        all_names = dict.fromkeys((*names, entry.name, *entry.aliases))
        words += [_ENGINE, engine, _QUIET_FLAG, _SERVED_NAME, *all_names]
        return replace(
            entry,
            words=tuple(words),
            engine=engine,
            env={**variables, **entry.env},
            aliases=tuple(name for name in all_names if name != entry.name),
        )

    def _check(self, entry: ModelEntry) -> CheckedModel:
        parent = click.Context(click.Command("serve"))
        parent.meta[IS_QUIET] = True
        serve = ServeCommand(name="serve", params=serve_parameters())
        with serve.make_context("serve", list(entry.words), parent=parent) as ctx:
            if (options := ctx.meta.get(VLLM)) is not None:
                return self._check_vllm(entry, options.words, has_standby=options.standby != "off")
            return self._check_embedded(entry, ctx.meta[CONFIG_OF_START])

    def _check_vllm(self, entry: ModelEntry, words: Sequence[str], *, has_standby: bool) -> CheckedModel:
        vllm = require_vllm()
        line = CommandLine.of(words)
        if line.has("--api-key"):
            raise InputError("its --config must not have api-key: give keys on the command line, for all models")
        entry = replace(entry, adapters=_adapters(line.lists.get(_LORA_MODULES, ())))
        kind = kind_for("vllm", ServeWords(entry.words)) if has_standby and not env.VCLI_PLAIN_VLLM.get() else None
        return self._checked(entry, lambda: run_vllm_preflight(vllm, line, is_listening=True), line.request, kind)

    def _check_embedded(self, entry: ModelEntry, config: StartupConfig) -> CheckedModel:
        require_embedded_engine()
        network = config.server.network
        given = env.VLLM_API_KEY.get()
        if set(network.api_keys) - set(given or ()) or network.api_key_file is not None:
            raise InputError("its --config must not have api-key: give keys on the command line, for all models")
        memory = read_memory()
        # Other models can be stopped, so that all memory is free.
        options = PreflightOptions(
            is_listening=True, memory=memory and memory._replace(available_bytes=memory.total_bytes)
        )
        entry = replace(entry, adapters=tuple(module.name for module in config.server.lora_modules))
        has_standby = config.standby != "off" and not config.engine.trust_remote_code
        kind = kind_for("embedded", ServeWords(entry.words)) if has_standby else None
        request = ModelRequest.of_start(config)
        return self._checked(entry, lambda: run_preflight(config, options=options), request, kind)

    def _checked(
        self,
        entry: ModelEntry,
        run_preflight: Callable[[], PreflightReport],
        request: ModelRequest,
        kind: str | None,
    ) -> CheckedModel:
        if self._config.preflight == "off":
            return CheckedModel(entry, request=request, standby_kind=kind)
        report = run_preflight()
        found = report.findings
        if self._config.preflight == "warn":
            found = tuple(f._replace(severity="warning") if f.severity == "error" else f for f in found)
        faults = tuple(self._fault(entry, f.message, f.check) for f in found if f.severity == "error")
        return CheckedModel(entry, faults, found, request, kind)


def _reject_flags(words: Sequence[str]) -> None:
    for flag, given in split_flags(words):
        if flag is not None and (reason := fault_of_model(flag)) is not None:
            raise InputError(f"must not have {given.flag}: {reason}")


def _last_value(words: Sequence[str], name: str) -> str | None:
    values = [given.values[-1] for flag, given in split_flags(words) if flag and flag.name == name and given.values]
    return values[-1] if values else None


def _served_names(words: Sequence[str]) -> list[str]:
    """Those of the last --served-model-name, which is the one that counts with vLLM."""
    given = [list(given.values) for flag, given in split_flags(words) if flag and flag.name == _SERVED_NAME]
    return [name for name in given[-1] if name] if given else []


def _adapters(values: Iterable[str]) -> tuple[str, ...]:
    names = []
    for value in values:
        with suppress(ConfigError):  # vLLM reports it
            names.append(LoraModule.parse(value).name)
    return tuple(names)
