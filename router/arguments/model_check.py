"""Completes the command line of a router's model, and checks it with its engine's parser and preflight.

A model with variables of its own is checked in a separate process that has these variables, because parsers,
preflight and libraries read the environment of their process.
"""

import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple, Self

import click

from base.errors import ConfigError
from base.machine.memory import read_memory
from envs import environment
from envs.redaction import is_secret_flag
from envs.registry import env
from envs.variable import EnvError
from router.arguments.router_arguments import LACKED_BY_VLLM, QUIET_FLAG, SeveralModels, fault_of_model
from router.child.child_process import inherited_environment
from router.model_entry import Fault, ModelEntry, Notice, ServerTimes
from router.standbys import template_kind_of_entry
from startup.arguments.embedded_line import options_of_file
from startup.arguments.errors import InputError
from startup.arguments.read_arguments import choose_engine
from startup.arguments.screening import secrets_as_variables, without_flags
from startup.arguments.serve_command import parse_start
from startup.arguments.supported import CONFIG
from startup.arguments.table import split_flags
from startup.embedded.installed import require_embedded_engine
from startup.errors import StartupError
from startup.files.model.file_plan import plan_files
from startup.files.model.model_request import ModelRequest, parse_adapter
from startup.processes.new_program import OWN_PACKAGES_MODULE
from startup.session.preflight.all_checks import PreflightOptions, run_preflight
from startup.session.preflight.report import USAGE, Finding, PreflightReport, unchecked
from startup.settings.config import StartupConfig, flags_with_role
from startup.settings.serve_arguments import CommandLine, LauncherLine, ParsedOption, is_flag_like, join
from startup.vllm_arguments.installed import require_vllm
from startup.vllm_arguments.options import VllmOptions
from startup.vllm_arguments.preflight.all_checks import run_preflight as run_vllm_preflight
from startup.vllm_arguments.preflight.devices import can_sleep, deepest_level

_ENGINE: Final = "--engine"
_SERVED_NAME: Final = "--served-model-name"
_LORA_MODULES: Final = "--lora-modules"
_CODE: Final = (
    f"import sys; sys.path.append(sys.argv[1]); import {OWN_PACKAGES_MODULE}; from {__name__} import main; main()"
)
_CHECK_S: Final = 700
"""The most seconds for a check in a separate process. It usually takes a quarter of a second, and may have to
load vLLM's parser."""
_UNCHECKED_COMMAND: Final = unchecked("cmd", "of a command of another program, only the program's file is checked")

_FLAG: Final = "--enable-sleep-mode"
_NEEDS_OTHERS: Final = "its engines are on several machines, or give their KV cache to others"


class SleepArguments(NamedTuple):
    """An entry with its sleep flag and levels, and a notice for the user, which may be empty."""

    entry: ModelEntry
    notice: str = ""


def with_sleep_arguments(entry: ModelEntry) -> SleepArguments:
    """Sets the sleep flag and the sleep levels of a complete entry. Without levels, the model is stopped."""
    has_flag = any(part.name == _FLAG for part in split_flags(entry.arguments))
    if entry.engine != "vllm" or not (has_flag or entry.should_sleep):
        return SleepArguments(replace(entry, sleep_levels=()))
    deepest = deepest_level(entry.arguments)
    reason = can_sleep({**environment.snapshot(), **entry.env}) or ("" if deepest else _NEEDS_OTHERS)
    if reason and not has_flag:
        return SleepArguments(replace(entry, sleep_levels=()), f"cannot sleep, and is stopped instead: {reason}")
    levels = tuple(level for level in entry.sleep_levels if level <= deepest)
    notice = "" if levels else "sleeps only at level 1: level 2 would not restore all weights of this model"
    arguments = entry.arguments if has_flag else (*entry.arguments, _FLAG)
    return SleepArguments(replace(entry, arguments=arguments, sleep_levels=levels or (1,)), notice)


class CheckedModel(NamedTuple):
    """An entry with its complete command line, and the results of its checks."""

    entry: ModelEntry
    faults: tuple[Fault, ...] = ()
    findings: tuple[Finding, ...] = ()
    """The findings of the preflight. Its errors are also in `faults`."""
    request: ModelRequest | None = None
    template_kind: str | None = None
    notices: tuple[Notice, ...] = ()


class ModelStart(NamedTuple):
    """The start of a model of one of our engines, as far as the router must know it."""

    entry: ModelEntry
    """The entry with the times of its start."""
    request: ModelRequest
    template_kind: str | None
    """The kind of standby that can fork the server. None if each start is cold."""

    @classmethod
    def of_embedded(cls, entry: ModelEntry, config: StartupConfig) -> Self:
        times = ServerTimes(config.server.lifecycle.shutdown_timeout_s, config.engine_watchdog_timeout_s)
        is_warm = config.standby != "off" and not config.engine.trust_remote_code
        kind = template_kind_of_entry(entry) if is_warm else None
        return cls(replace(entry, times=times), ModelRequest.of_start(config), kind)

    @classmethod
    def of_vllm(cls, entry: ModelEntry, options: VllmOptions) -> Self:
        line = options.line
        times = ServerTimes(line.shutdown_timeout_s, options.engine_watchdog_timeout_s)
        is_warm = options.standby != "off" and not env.VCLI_PLAIN_VLLM.get()
        return cls(replace(entry, times=times), line.request, template_kind_of_entry(entry) if is_warm else None)


class ModelCheck:
    """Completes and checks the command lines of models. May be used on any thread."""

    def __init__(self, config: StartupConfig, several: SeveralModels, file: str) -> None:
        self._config = config
        self._defaults = several.defaults
        self._engine = several.engine
        self._file = file

    def run(self, entry: ModelEntry) -> CheckedModel:
        """Completes and checks one model. Returns faults instead of raising them."""
        if entry.foreign is not None:
            return CheckedModel(entry, tuple(self._check_program(entry)), (_UNCHECKED_COMMAND,))
        return self._guarded(lambda: self._complete_and_check(entry), entry)

    def _complete_and_check(self, entry: ModelEntry) -> CheckedModel:
        entry, notice = with_sleep_arguments(self._completed(entry))
        checked = self._check_as_started(entry)
        key = key_of(entry, self._file)
        return checked._replace(notices=(Notice(notice, entry.line, key, self._file),) if notice else ())

    def run_here(self, entry: ModelEntry) -> CheckedModel:
        """Checks a completed entry in this process, which must have the variables of the entry."""
        return self._guarded(lambda: self._check(entry), entry)

    def _guarded(self, check: Callable[[], CheckedModel], entry: ModelEntry) -> CheckedModel:
        """Runs a check. Converts an error that the check raises to a fault of the entry."""
        try:
            return check()
        except click.ClickException as err:
            text = err.format_message()
        except (ConfigError, EnvError) as err:
            text = str(err)
        except StartupError as err:
            return CheckedModel(entry, (self._fault(entry, str(err), "engine"),))
        return CheckedModel(entry, (self._fault(entry, text.rstrip(".")),))

    def _fault(self, entry: ModelEntry, text: str, check: str = USAGE) -> Fault:
        return Fault(text, entry.line, key_of(entry, self._file), self._file, check)

    def _check_program(self, entry: ModelEntry) -> Iterator[Fault]:
        assert entry.foreign is not None
        program = next(iter(entry.foreign.arguments), None)
        if program is not None and shutil.which(program, path=entry.env.get("PATH")) is None:
            text = f"the program {program!r} of cmd is not found: install it, or give its path"
            yield self._fault(entry, text, "program")

    def _completed(self, entry: ModelEntry) -> ModelEntry:
        """The entry with its defaults, engine and names, but without secrets. Raises InputError."""
        own = [*split_flags(entry.arguments)]
        _reject_flags(own)
        engine = _last_value(own, _ENGINE) or (entry.engine if entry.engine != "auto" else None) or self._engine
        begin = int(bool(own) and not is_flag_like(entry.arguments[0]))
        engine = choose_engine(LauncherLine((_ENGINE, engine) if engine else ()))
        defaults = without_flags(split_flags(self._defaults), LACKED_BY_VLLM if engine == "vllm" else ())
        parts, variables = secrets_as_variables((*own[:begin], *defaults, *own[begin:]))
        names = served_names(parts)
        parts = without_flags(parts, (_ENGINE, _SERVED_NAME, QUIET_FLAG))
        if any(is_secret_flag(part.typed) and any(part.values) for part in parts):
            raise InputError("a key on the command line of a model can be read by others: use `env` for it")
        all_names = dict.fromkeys((*names, entry.name, *entry.aliases))
        aliases = tuple(name for name in all_names if name != entry.name)
        arguments = (*join(parts), _ENGINE, engine, QUIET_FLAG, _SERVED_NAME, *all_names)
        return replace(entry, arguments=arguments, engine=engine, env={**variables, **entry.env}, aliases=aliases)

    def _check_as_started(self, entry: ModelEntry) -> CheckedModel:
        """Checks the entry in a separate process with its variables, which appear on no command line."""
        if not entry.env:
            return self._check(entry)
        command = [sys.executable, "-P", "-c", _CODE, _root_folder()]
        job, environment = pickle.dumps((self, entry)), {**inherited_environment(), **entry.env}
        try:
            done = subprocess.run(command, input=job, stdout=subprocess.PIPE, env=environment, timeout=_CHECK_S)
        except (OSError, subprocess.TimeoutExpired) as err:
            raise StartupError(f"cannot be checked with its env: {err}") from err
        if done.returncode != 0:
            raise StartupError(f"cannot be checked with its env: Python ends with exit code {done.returncode}")
        checked: CheckedModel = pickle.loads(done.stdout)
        return checked

    def _check(self, entry: ModelEntry) -> CheckedModel:
        start = parse_start(entry.arguments, is_quiet=True)
        if isinstance(start, StartupConfig):
            return self._check_embedded(entry, start)
        return self._check_vllm(entry, start)

    def _check_vllm(self, entry: ModelEntry, start: VllmOptions) -> CheckedModel:
        vllm = require_vllm()
        line, problem = start.line, None
        if self._config.is_preflight_only:
            from startup.vllm.launch.first_record import line_for_check  # noqa: PLC0415 - no start needs it

            line, problem = line_for_check(vllm, start.line, partial(click.echo, err=True))
        _reject_keys(option.name for option in line.options)
        adapters = (name for name, path in map(parse_adapter, line.values(_LORA_MODULES)) if name and path)
        options = PreflightOptions(is_listening=True, asks_hub=True, flags_problem=problem)
        check = partial(run_vllm_preflight, vllm, line, options)
        return self._checked(ModelStart.of_vllm(replace(entry, adapters=tuple(adapters)), start), check)

    def _check_embedded(self, entry: ModelEntry, config: StartupConfig) -> CheckedModel:
        require_embedded_engine()
        if path := _last_value(split_flags(entry.arguments), CONFIG.name):
            _reject_keys(option.name for option in options_of_file(path))
        memory = read_memory()
        # Other models can be stopped, so all memory counts as free.
        options = PreflightOptions(
            is_listening=True, memory=memory and memory._replace(available_bytes=memory.total_bytes), asks_hub=True
        )
        return self._checked(ModelStart.of_embedded(entry, config), partial(run_preflight, config, options=options))

    def _checked(self, start: ModelStart, run_preflight: Callable[[], PreflightReport]) -> CheckedModel:
        entry, request, kind = start
        mode = "auto" if self._config.is_preflight_only else self._config.preflight
        if mode == "off":
            return CheckedModel(entry, request=request, template_kind=kind)
        report = run_preflight()
        found = report.findings
        if mode == "warn":
            found = tuple(f._replace(severity="warning") if f.severity == "error" else f for f in found)
        faults = tuple(self._fault(entry, f.message, f.check) for f in found if f.severity == "error")
        return CheckedModel(entry, faults, found, request, kind)


def _reject_flags(parts: Iterable[ParsedOption]) -> None:
    for option in parts:
        if option.flag is not None and (reason := fault_of_model(option.flag)) is not None:
            raise InputError(f"must not have {option.typed}: {reason}")


def _reject_keys(flags: Iterable[str]) -> None:
    """Rejects API keys in the --config file of a model. The command line was checked before."""
    for flag in sorted(flags_with_role("keys").intersection(flags)):
        text = f"its --config must not have {flag.removeprefix('--')}"
        raise InputError(f"{text}: give keys on the command line, for all models")


def _last_value(parts: Iterable[ParsedOption], name: str) -> str | None:
    return CommandLine([part for part in parts if part.values]).value(name)


def served_names(parts: Iterable[ParsedOption]) -> list[str]:
    """The names in the last --served-model-name. vLLM ignores all earlier uses of this flag."""
    return [name for name in CommandLine([*parts]).values(_SERVED_NAME) if name]


def _root_folder() -> str:
    """The folder from which a separate process imports this program."""
    own_packages = find_spec(OWN_PACKAGES_MODULE)
    assert own_packages is not None
    assert own_packages.origin is not None
    return str(Path(own_packages.origin).parents[1])


def folder_of(request: ModelRequest | None) -> str | None:
    """The folder of the model. None if the model is not on disk."""
    with suppress(StartupError, OSError, ValueError):
        folder = None if request is None else plan_files(request).model_folder
        return None if folder is None else str(folder)
    return None


def key_of(entry: ModelEntry, file: str) -> str:
    """The path of the key of a model, as faults show it."""
    return f"models.{entry.name}" if file else entry.name


def main() -> None:
    """The separate process: reads an entry from standard input, and writes its result to standard output."""
    check: ModelCheck
    check, entry = pickle.load(sys.stdin.buffer)
    with redirect_stdout(sys.stderr):
        checked = check.run_here(entry)
    pickle.dump(checked, sys.stdout.buffer)
