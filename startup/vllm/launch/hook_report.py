"""The result of `vllm-cli preload check`: which hooks fit a version of vLLM."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from startup.hooks.check import Finding, check_hooks
from startup.hooks.hook import Hook
from startup.hooks.sources import Sources, installed_package, packages_beside
from startup.hooks.table import HOOKS
from startup.vllm.installed import InstalledVllm

_BY_NAME: Final = {hook.name: hook for hook in HOOKS}


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
