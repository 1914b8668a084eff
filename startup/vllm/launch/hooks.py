"""Lists all hooks, and checks which of them fit the installed vLLM. A hook changes or uses vLLM's internals.

To add a hook, declare it in the module that has its changes. Add a new module with hooks to `PLACED_IN` of
`startup.vllm.patches.placing`, or, if a step of the start places its hooks, to `_DECLARED_IN`. Then run
`make docs`.
"""

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from itertools import groupby
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args

from envs.suggestion import did_you_mean
from startup.hook import Hook, StartPart, Text, hooks_of, leave_out_misfits, place_only_for
from startup.imports import cheap_calls, gpu_guard, lean, scan_cache
from startup.processes import interpreter, state
from startup.vllm.fork import forkserver, preload_plan
from startup.vllm.patches import engine_wait, late_renderer
from startup.vllm.patches.placing import PLACED_IN
from startup.vllm.serving import engine_death
from startup.vllm.vllm_imports import FailedImport, import_leniently
from startup.vllm_arguments import vllm_record
from startup.vllm_arguments.installed import InstalledVllm
from startup.vllm_arguments.vllm_record import RecordFile

logger = logging.getLogger(__name__)

_DECLARED_IN: Final = (
    preload_plan,
    forkserver,
    engine_death,
    gpu_guard,
    cheap_calls,
    scan_cache,
    engine_wait,
    late_renderer,
    *PLACED_IN,
    state,
    vllm_record,
    lean,
)
"""The modules that declare hooks, in the order of the documentation."""

HOOKS: Final = tuple(hooks_of(*_DECLARED_IN))
"""Each hook, followed by its parts, which have the same name."""
PARTS: Final = {name: tuple(parts) for name, parts in groupby(HOOKS, key=lambda hook: hook.name)}
"""The name of a hook -> the hook and its parts."""

_COMMAND: Final = "`vllm-cli doctor --hooks` shows all"


HookState: TypeAlias = Literal["applies", "does not fit", "not needed", "not checked"]
"""A hook is `not needed` in some releases of vLLM, and `not checked` if packages are missing or broken."""


class HookFinding(NamedTuple):
    """Whether one hook fits."""

    hook: str
    state: HookState
    reasons: tuple[str, ...] = ()
    """The names that are missing or have changed, or the packages that are missing."""


def leave_out_unfit(vllm: InstalledVllm) -> None:
    """From now on, this process and its forks skip hooks that this vLLM does not need or that do not fit."""
    place_only_for(vllm.release)
    leave_out_misfits(hook for hook in HOOKS if hook.is_for(vllm.release) and not hook.is_essential)


def names_that_cannot_be_left_out(names: Iterable[str]) -> list[str]:
    """Returns unknown names, each with a hint, and names of essential hooks, which preloading needs."""
    known = {hook.name for hook in HOOKS if not hook.is_essential}.union(get_args(StartPart))
    return [f"{name}{did_you_mean(name, known)}" for name in sorted(set(names) - known)]


def find_obstacle() -> str | None:
    """Why vLLM must start without preloading: one essential hook does not fit. None if all of them fit."""
    for hook in HOOKS:
        if hook.is_essential and (problem := next(hook.problems(), None)) is not None:
            return f"the hook {hook.name!r} does not fit this version ({problem}). {_COMMAND}"
    return None


class HookReport(NamedTuple):
    """The findings about all hooks for one installed vLLM."""

    vllm: InstalledVllm
    findings: Sequence[HookFinding]

    @property
    def all_fit(self) -> bool:
        """Whether each hook that this version needs fits. Hooks that could not be checked are ignored."""
        return all(finding.state != "does not fit" for finding in self.findings)

    def to_fields(self) -> dict[str, Any]:
        hooks = [
            {**finding._asdict(), "is_essential": hook_of(finding).is_essential, "without": hook_of(finding).without}
            for finding in self.findings
        ]
        version = {"version": self.vllm.version, "folder": str(self.vllm.folder), "python": interpreter.name()}
        return {**version, "fits": self.all_fit, "hooks": hooks}


def report_hooks(vllm: InstalledVllm) -> HookReport:
    """Imports the modules that hooks need, checks all hooks, and records vLLM's flags (`RecordFile`)."""
    record_file = RecordFile(vllm)
    with redirect_stdout(sys.stderr):
        failed = import_leniently({module: None for hook in HOOKS for module in _imported(hook)})
        record_file.update(imports_all=True)
    return HookReport(vllm, [_check(name, vllm, failed) for name in PARTS])


def _imported(hook: Hook) -> Iterator[str]:
    return (need.module for need in hook.needs if not isinstance(need, Text))


def _check(name: str, vllm: InstalledVllm, failed: Mapping[str, FailedImport]) -> HookFinding:
    needed = [hook for hook in PARTS[name] if hook.is_for(vllm.release)]
    if not needed:
        return HookFinding(name, "not needed")
    if reasons := tuple(problem for hook in needed for problem in hook.problems()):
        return HookFinding(name, "does not fit", reasons)
    absent = sorted({package for hook in needed for package in hook.absent_packages})
    unknown = [f"{package} is not installed here" for package in absent]
    for module in (module for hook in needed for module in _imported(hook)):
        if module in failed and module.partition(".")[0] not in absent:
            unknown.append(f"{module} cannot be imported here ({failed[module].text})")
    return HookFinding(name, "not checked" if unknown else "applies", tuple(unknown))


def hook_of(finding: HookFinding) -> Hook:
    """The hook that the finding is about."""
    return PARTS[finding.hook][0]
