"""All hooks, and which of them fit the installed vLLM.

To add a hook: declare it in the module that places it, and place it only if it `applies`; run `make docs`.
A new module with hooks is added to `_PLACED_IN`.
"""

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args

from envs.registry import env
from startup.compiled_models import vllm_hooks
from startup.ground.hooks.hook import Hook, Part, Text, leave_out, log_unfit, unfit
from startup.ground.processes import forkserver as own_forkserver
from startup.ground.processes import interpreter, library_state
from startup.imports import cheap_calls, gpu_guard, lean, scan_cache
from startup.vllm import api_server_imports, vllm_main
from startup.vllm.api_server_imports import import_leniently
from startup.vllm.fork import forkserver, forkserver_start, preload_profile
from startup.vllm.patches import (
    compiler,
    early_engine,
    frozen_heap,
    graph_memory,
    json_logs,
    kv_cache,
    late_imports,
    model_caches,
    model_registry,
    port,
    process_titles,
    spans,
    temp_files,
)
from startup.vllm.probes import rust_frontend, serving_events
from startup.vllm_words import facts
from startup.vllm_words.facts import KeptFacts
from startup.vllm_words.installed import InstalledVllm

logger = logging.getLogger(__name__)

_PLACED_IN: Final = (
    vllm_main, api_server_imports, cheap_calls, gpu_guard, preload_profile, forkserver, port, serving_events,
    rust_frontend, early_engine, model_caches, late_imports, spans, model_registry, kv_cache, frozen_heap,
    graph_memory, compiler, vllm_hooks, json_logs, forkserver_start, own_forkserver, scan_cache, lean, library_state,
    temp_files, process_titles, facts,
)  # fmt: skip
"""The modules that declare hooks, in the order of the documentation."""

HOOKS: Final = tuple(hook for module in _PLACED_IN for hook in vars(module).values() if isinstance(hook, Hook))

_BY_NAME: Final = {hook.name: hook for hook in HOOKS}
_COMMAND: Final = "`vllm-cli check-hooks` shows all"


HookState: TypeAlias = Literal["applies", "does not fit", "not needed", "not checked"]
"""`not needed`: by this release of vLLM. `not checked`: packages are missing, or cannot be imported."""


class HookFinding(NamedTuple):
    """The result for one hook."""

    hook: str
    state: HookState
    reasons: tuple[str, ...] = ()
    """What is missing or changed, or which packages are missing."""


def leave_out_unneeded(vllm: InstalledVllm) -> None:
    """From now on, this process and its forks place no hooks for other releases."""
    leave_out(hook.name for hook in HOOKS if not hook.is_for(vllm.release))


def leave_out_unfit(vllm: InstalledVllm) -> None:
    """The same, and those that do not fit as far as it is known without an import: one line names them."""
    leave_out_unneeded(vllm)
    needed = (hook for hook in HOOKS if hook.is_for(vllm.release) and not hook.is_essential)
    early = [hook.name for hook in needed if next(hook.problems(), None) is not None]
    leave_out(early)
    if names := sorted({*early, *unfit()}):
        log_unfit(names)
    if unknown := names_that_cannot_be_left_out(env.VCLI_LEAVE_OUT.get()):
        logger.warning("%s: no hooks that can be left out: %s", env.VCLI_LEAVE_OUT.name, ", ".join(unknown))


def names_that_cannot_be_left_out(names: Iterable[str]) -> list[str]:
    """The names of nothing, or of a hook without which vLLM starts without preloading."""
    return sorted(set(names) - {hook.name for hook in HOOKS if not hook.is_essential} - set(get_args(Part)))


def find_obstacle() -> str | None:
    """Why vLLM must start without preloading, as far as it is known; None if all essential hooks fit."""
    for hook in HOOKS:
        if hook.is_essential and (problem := next(hook.problems(), None)) is not None:
            return f"the hook {hook.name!r} does not fit this version ({problem}); {_COMMAND}"
    return None


class HookReport(NamedTuple):
    """The findings for one vLLM."""

    vllm: InstalledVllm
    findings: Sequence[HookFinding]

    @property
    def all_fit(self) -> bool:
        """Whether no hook has to be left out that this version needs."""
        return all(finding.state != "does not fit" for finding in self.findings)

    def to_fields(self) -> dict[str, Any]:
        """The report as JSON values."""
        hooks = [
            {**finding._asdict(), "is_essential": hook_of(finding).is_essential, "without": hook_of(finding).without}
            for finding in self.findings
        ]
        version = {"version": self.vllm.version, "folder": str(self.vllm.folder), "python": interpreter.name()}
        return {**version, "fits": self.all_fit, "hooks": hooks}


def report_hooks(vllm: InstalledVllm) -> HookReport:
    """Imports the modules that hooks need, and records what vLLM accepts."""
    facts = KeptFacts(vllm)
    with redirect_stdout(sys.stderr):
        failed = import_leniently({module: None for hook in HOOKS for module in _imported(hook)})
        facts.record(imports_all=True)
    return HookReport(vllm, [_check(hook, vllm, failed) for hook in HOOKS])


def _imported(hook: Hook) -> Iterator[str]:
    return (need.modules[0] for need in hook.needs if not isinstance(need, Text))


def _check(hook: Hook, vllm: InstalledVllm, failed: Mapping[str, str]) -> HookFinding:
    if not hook.is_for(vllm.release):
        return HookFinding(hook.name, "not needed")
    if reasons := tuple(hook.problems()):
        return HookFinding(hook.name, "does not fit", reasons)
    absent = hook.absent_packages
    unknown = [f"{package} is not installed here" for package in absent]
    for module in _imported(hook):
        if module in failed and module.partition(".")[0] not in absent:
            unknown.append(f"{module} cannot be imported here ({failed[module]})")
    return HookFinding(hook.name, "not checked" if unknown else "applies", tuple(unknown))


def hook_of(finding: HookFinding) -> Hook:
    """The hook that the finding is about."""
    return _BY_NAME[finding.hook]
