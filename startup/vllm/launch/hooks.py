"""All hooks, and which of them fit the installed vLLM: checked once, later read from a file.

The check parses some sources of vLLM and its libraries. Its result is valid while these files are the same.
To add a hook: declare it in the module that places it, and place it only if it `applies`; run `make docs`.
A new module with hooks is added to `_PLACED_IN`.
"""

import json
import logging
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from hashlib import sha256
from typing import Any, Final, NamedTuple, get_args

from base.machine.file_stamps import are_unchanged, store_stamps
from base.machine.files import write_whole
from envs.registry import env
from startup.caches import layers
from startup.hooks.hook import Hook, Part, leave_out
from startup.hooks.sources import Finding, Sources, check_hooks, installed_package, packages_beside
from startup.imports import lean, scan_cache
from startup.processes import forkserver as own_forkserver
from startup.processes import interpreter, library_state
from startup.vllm import command_line, facts, imports
from startup.vllm.fork import forkserver, forkserver_start, preload_profile
from startup.vllm.installed import InstalledVllm
from startup.vllm.patches import (
    compiled_models,
    compiler,
    early_engine,
    json_logs,
    late_imports,
    model_caches,
    model_registry,
    port,
    process_titles,
    spans,
    temp_files,
)
from startup.vllm.probes import serving_events

logger = logging.getLogger(__name__)

_PLACED_IN: Final = (
    command_line, imports, preload_profile, forkserver, port, serving_events, early_engine, model_caches, late_imports,
    spans, model_registry, compiler, compiled_models, json_logs, forkserver_start, own_forkserver, scan_cache, lean,
    library_state, temp_files, process_titles, facts,
)  # fmt: skip
"""The modules that declare hooks, in the order of the documentation."""

HOOKS: Final = tuple(hook for module in _PLACED_IN for hook in vars(module).values() if isinstance(hook, Hook))

_BY_NAME: Final = {hook.name: hook for hook in HOOKS}
_COMMAND: Final = "`vllm-cli preload check` shows all"


@cache
def check_installed(vllm: InstalledVllm) -> tuple[Finding, ...]:
    """One finding per hook."""
    paths = layers(f"hooks/{_key(vllm)}.json")
    for path in paths:
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            content = json.loads(path.read_bytes())
            if are_unchanged(content["files"]):
                return tuple(Finding(hook, state, tuple(reasons)) for hook, state, reasons in content["findings"])
    sources = Sources(installed_package)
    findings = tuple(check_hooks(HOOKS, sources, vllm.release))
    files = store_stamps(map(str, sources.looked_at))
    with suppress(OSError):
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        write_whole(paths[0], json.dumps({"files": files, "findings": findings}))
    return findings


def leave_out_unfit(vllm: InstalledVllm) -> None:
    """From now on, this process and its forks place only hooks that fit."""
    leave_out(_hooks_to_leave_out(check_installed(vllm)))


def log_left_out(vllm: InstalledVllm) -> None:
    """Logs in one line which speed-ups this version of vLLM lacks."""
    findings = check_installed(vllm)
    if (notice := describe_unfit(findings)) is not None:
        logger.warning("vLLM %s %s", vllm.version, notice)
    if unknown := names_that_cannot_be_left_out(env.VCLI_LEAVE_OUT.get()):
        logger.warning("%s: no hooks that can be left out: %s", env.VCLI_LEAVE_OUT.name, ", ".join(unknown))


def _hooks_to_leave_out(findings: Iterable[Finding]) -> list[str]:
    return [finding.hook for finding in findings if finding.state in ("does not fit", "not needed")]


def names_that_cannot_be_left_out(names: Iterable[str]) -> list[str]:
    """The names of nothing, or of a hook without which vLLM starts without preloading."""
    return sorted(set(names) - {hook.name for hook in HOOKS if not hook.is_essential} - set(get_args(Part)))


def find_obstacle(findings: Iterable[Finding]) -> str | None:
    """Why vLLM must start without preloading, as a text; None if all essential hooks fit."""
    for finding in findings:
        if finding.state == "does not fit" and hook_of(finding).is_essential:
            return f"the hook {finding.hook!r} does not fit this version ({finding.reasons[0]}); {_COMMAND}"
    return None


def describe_unfit(findings: Sequence[Finding]) -> str | None:
    """One line about the hooks that do not fit, to be continued after vLLM's version; None if all fit."""
    names = [repr(finding.hook) for finding in findings if finding.state == "does not fit"]
    if not names:
        return None
    return f"starts without some speed-ups, since these hooks do not fit: {', '.join(names)}; {_COMMAND}"


def _key(vllm: InstalledVllm) -> str:
    """The name of the file for this installation and table of hooks."""
    return sha256(repr((sys.version, str(vllm.folder), vllm.version, HOOKS)).encode()).hexdigest()[:16]


class HookReport(NamedTuple):
    """The findings for one vLLM."""

    vllm: InstalledVllm
    findings: Sequence[Finding]

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


def report_hooks(vllm: InstalledVllm, *, is_installed: bool) -> HookReport:
    """Reads the sources of vLLM and its libraries, which lie beside it if it is not installed."""
    find = installed_package if is_installed else packages_beside(vllm.folder.parent)
    return HookReport(vllm, check_hooks(HOOKS, Sources(find), vllm.release))


def hook_of(finding: Finding) -> Hook:
    """The hook that the finding is about."""
    return _BY_NAME[finding.hook]
