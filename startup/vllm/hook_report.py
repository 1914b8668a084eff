"""The result of `vllm-cli preload check`: which hooks fit a version of vLLM, for people and as JSON."""

from collections.abc import Iterator, Sequence
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
            {**finding._asdict(), "is_essential": _hook(finding).is_essential, "without": _hook(finding).without}
            for finding in self.findings
        ]
        return {"version": self.vllm.version, "folder": str(self.vllm.folder), "fits": self.all_fit, "hooks": hooks}


def report_hooks(vllm: InstalledVllm, *, is_installed: bool) -> HookReport:
    """Reads the sources of vLLM and its libraries, which lie beside it if it is not installed."""
    find = installed_package if is_installed else packages_beside(vllm.folder.parent)
    return HookReport(vllm, check_hooks(HOOKS, Sources(find), vllm.release))


def describe_report(report: HookReport) -> str:
    """A table with one line per hook, what is wrong, and what follows from it."""
    width = max(len(hook.name) for hook in HOOKS)
    lines = [f"vLLM {report.vllm.version} in {report.vllm.folder}", ""]
    for finding in report.findings:
        first, *others = finding.reasons or ("",)
        lines.append(f"{finding.hook:{width}}  {finding.state:12}  {first}".rstrip())
        lines += [f"{'':{width}}  {'':12}  {reason}" for reason in others]
    return "\n".join([*lines, "", *_consequences(report)])


def _consequences(report: HookReport) -> Iterator[str]:
    unfit = [_hook(finding) for finding in report.findings if finding.state == "does not fit"]
    if any(hook.is_essential for hook in unfit):
        essential = ", ".join(hook.name for hook in unfit if hook.is_essential)
        yield f"This version starts without preloading, as plain `vllm serve` does: {essential}."
    elif unfit:
        yield "This version starts with preloading. What it lacks:"
        yield from (f"- {hook.name}: {hook.without}" for hook in unfit)
    elif any(finding.state == "not checked" for finding in report.findings):
        yield "All hooks that could be checked fit this version."
    else:
        yield "All hooks fit this version."


def _hook(finding: Finding) -> Hook:
    return _BY_NAME[finding.hook]
