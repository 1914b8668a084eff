"""All hooks, and which of them fit the installed vLLM: checked once, later read from a file.

The check parses some sources of vLLM and its libraries. Its result is valid while these files are the same.
To add a hook: declare it in the module that places it, and place it only if it `applies`;
add it to `HOOKS`; run `make docs`.
"""

import json
import logging
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from hashlib import sha256
from typing import Any, Final, NamedTuple

from envs.registry import env
from server.machine.file_stamps import read_stamp
from server.machine.files import write_whole
from startup.caches.folders import layers
from startup.hooks.check import Finding, check_hooks
from startup.hooks.hook import Hook, leave_out
from startup.hooks.sources import Sources, installed_package, packages_beside
from startup.imports.lean import STAND_INS
from startup.imports.scan_cache import CACHED_SCANS
from startup.processes.dormant_forkserver import DORMANT_FORKSERVER
from startup.processes.library_state import FORKED_LIBRARIES
from startup.vllm.command_line import COMMAND_LINE
from startup.vllm.fork.forkserver import MULTIPROCESSING, PROCESS_START
from startup.vllm.fork.forkserver_start import CHILD_VARIABLES
from startup.vllm.fork.preload_plan import ENGINE, WORKER
from startup.vllm.fork.preload_profile import RECORDED_PROCESSES
from startup.vllm.imports import API_SERVER
from startup.vllm.installed import InstalledVllm
from startup.vllm.patches.cheap_calls import CHEAP_CALLS
from startup.vllm.patches.compile_cache import AOT_LOADING, COMPILE_CACHE
from startup.vllm.patches.compiler import DEFERRED_COMPILER, LATE_COMPILER, LAZY_COMPILE
from startup.vllm.patches.early_engine import EARLY_ENGINE, ENGINE_WAIT
from startup.vllm.patches.json_logs import JSON_LOGS, PROCESS_NAMES, STREAM_PREFIXES
from startup.vllm.patches.late_imports import LATE_NAMES
from startup.vllm.patches.model_caches import KEPT_COMPILER_KEYS, MODEL_CACHES, TOKENIZER_POOL
from startup.vllm.patches.model_registry import MODEL_INSPECTION, MODEL_MODULES
from startup.vllm.patches.port import PORT
from startup.vllm.patches.process_titles import PROCESS_TITLES
from startup.vllm.patches.spans import NAMED_SPANS, SPANS
from startup.vllm.patches.tokenizers import LATE_TOKENIZER, PROCESSOR_LOOKUP
from startup.vllm.patches.unused_commands import UNUSED_COMMANDS
from startup.vllm.probes.serving_events import SERVING, SERVING_PROBES

logger = logging.getLogger(__name__)

HOOKS: Final[tuple[Hook, ...]] = (
    COMMAND_LINE,
    API_SERVER,
    ENGINE,
    WORKER,
    PROCESS_START,
    PORT,
    SERVING,
    SERVING_PROBES,
    EARLY_ENGINE,
    ENGINE_WAIT,
    LATE_TOKENIZER,
    LATE_NAMES,
    SPANS,
    NAMED_SPANS,
    MODEL_INSPECTION,
    MODEL_MODULES,
    UNUSED_COMMANDS,
    COMPILE_CACHE,
    AOT_LOADING,
    LATE_COMPILER,
    STREAM_PREFIXES,
    JSON_LOGS,
    PROCESS_NAMES,
    PROCESSOR_LOOKUP,
    MODEL_CACHES,
    TOKENIZER_POOL,
    PROCESS_TITLES,
    CHILD_VARIABLES,
    RECORDED_PROCESSES,
    MULTIPROCESSING,
    DORMANT_FORKSERVER,
    LAZY_COMPILE,
    CHEAP_CALLS,
    DEFERRED_COMPILER,
    KEPT_COMPILER_KEYS,
    CACHED_SCANS,
    STAND_INS,
    FORKED_LIBRARIES,
)
"""In the order of the documentation: first those in vLLM, and in uvicorn and setproctitle for it."""

_BY_NAME: Final = {hook.name: hook for hook in HOOKS}
_ESSENTIAL: Final = frozenset(hook.name for hook in HOOKS if hook.is_essential)
_COMMAND: Final = "`vllm-cli preload check` shows all"


@cache
def check_installed(vllm: InstalledVllm) -> tuple[Finding, ...]:
    """One finding per hook."""
    paths = layers(f"hooks/{_key(vllm)}.json")
    for path in paths:
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            content = json.loads(path.read_bytes())
            if all(read_stamp(name).stored == tuple(stamp) for name, stamp in content["files"].items()):
                return tuple(Finding(hook, state, tuple(reasons)) for hook, state, reasons in content["findings"])
    sources = Sources(installed_package)
    findings = tuple(check_hooks(HOOKS, sources, vllm.release))
    files = {str(file): read_stamp(file).stored for file in sources.looked_at}
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
    if (notice := describe_known(findings)) is not None:
        logger.info("vLLM %s %s", vllm.version, notice)
    if unknown := names_that_cannot_be_left_out(env.VCLI_LEAVE_OUT.get()):
        logger.warning("%s: no hooks that can be left out: %s", env.VCLI_LEAVE_OUT.name, ", ".join(unknown))


def _hooks_to_leave_out(findings: Iterable[Finding]) -> list[str]:
    return [finding.hook for finding in findings if finding.state in ("does not fit", "does not apply", "not needed")]


def names_that_cannot_be_left_out(names: Iterable[str]) -> list[str]:
    """The names of no hook, or of one without which vLLM starts without preloading."""
    return sorted(set(names) - {hook.name for hook in HOOKS if not hook.is_essential})


def find_obstacle(findings: Iterable[Finding]) -> str | None:
    """Why vLLM must start without preloading, as a text; None if all essential hooks fit."""
    for finding in findings:
        if finding.state == "does not fit" and finding.hook in _ESSENTIAL:
            return f"the hook {finding.hook!r} does not fit this version ({finding.reasons[0]}); {_COMMAND}"
    return None


def describe_unfit(findings: Sequence[Finding]) -> str | None:
    """One line about the hooks that do not fit, to be continued after vLLM's version; None if all fit."""
    names = [repr(finding.hook) for finding in findings if finding.state == "does not fit"]
    if not names:
        return None
    return f"starts without some speed-ups, since these hooks do not fit: {', '.join(names)}; {_COMMAND}"


def describe_known(findings: Iterable[Finding]) -> str | None:
    """One line about the hooks that are known not to apply, as `describe_unfit`."""
    known = [f"{finding.hook!r} ({finding.reasons[0]})" for finding in findings if finding.state == "does not apply"]
    return f"starts without some speed-ups: {', '.join(known)}" if known else None


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
        return {"version": self.vllm.version, "folder": str(self.vllm.folder), "fits": self.all_fit, "hooks": hooks}


def report_hooks(vllm: InstalledVllm, *, is_installed: bool) -> HookReport:
    """Reads the sources of vLLM and its libraries, which lie beside it if it is not installed."""
    find = installed_package if is_installed else packages_beside(vllm.folder.parent)
    return HookReport(vllm, check_hooks(HOOKS, Sources(find), vllm.release))


def hook_of(finding: Finding) -> Hook:
    """The hook that the finding is about."""
    return _BY_NAME[finding.hook]
