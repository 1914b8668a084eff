"""Checks once per installation which hooks fit the installed vLLM; later starts read the result from a file.

The check parses some sources of vLLM and its libraries. Its result is valid while these files are the same.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from hashlib import sha256
from typing import Final

from server.machine.file_stamps import read_stamp
from server.machine.files import write_whole
from startup.caches.folders import layers
from startup.hooks.check import Finding, check_hooks
from startup.hooks.sources import Sources, installed_package
from startup.hooks.table import HOOKS
from startup.vllm.installed import InstalledVllm

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


def hooks_to_leave_out(findings: Iterable[Finding]) -> list[str]:
    """The names of the hooks that must not be placed."""
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
