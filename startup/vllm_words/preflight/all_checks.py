"""Runs all checks of a start of vLLM before heavy imports, so that all faults are reported at once.

A finding is an error only if this vLLM certainly fails because of it. If a plugin, an override or another
machine may change the result, the finding is a warning. The checks use flags and names that earlier starts of
the installed vLLM have recorded (`startup.vllm_words.facts`). The checks also repeat some rules of vLLM. If a
start breaks such a rule, this is an error for the releases with which the rules were compared, and a warning
for newer releases. `startup.reports.causes` explains faults that vLLM itself reports later. Starts of
vllm-omni (--omni) are not checked.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from base.server_settings import NetworkConfig
from startup.session.preflight.all_checks import PreflightOptions, download_checks
from startup.session.preflight.network import check_address
from startup.session.preflight.report import CheckGroup, PreflightReport, run_checks
from startup.session.preflight.resources import check_cache_folder
from startup.settings.serve_words import OMNI
from startup.vllm_words.command_line import CommandLine
from startup.vllm_words.installed import InstalledVllm
from startup.vllm_words.preflight.arguments import GivenStart, argument_findings, rule_findings
from startup.vllm_words.preflight.devices import device_findings
from startup.vllm_words.preflight.model import ModelOnDisk
from startup.vllm_words.preflight.model_settings import setting_findings
from startup.vllm_words.preflight.named_files import file_findings
from startup.vllm_words.preflight.surroundings import surroundings_findings

_WAY_ROUND: Final = "if vLLM would accept this start, give --preflight warn"


def run_preflight(vllm: InstalledVllm, line: CommandLine, options: PreflightOptions) -> PreflightReport:
    """Runs all checks, and reports all faults at once. Does not raise for a fault."""
    return replace(run_checks(_groups(vllm, line, options)), way_round=_WAY_ROUND)


def _groups(vllm: InstalledVllm, line: CommandLine, options: PreflightOptions) -> Iterator[CheckGroup]:
    if OMNI in line.words:
        return
    yield from _groups_of_words(GivenStart(vllm, line), options)
    if line.listens and line.port and not options.is_listening:
        yield (
            "address",
            lambda: check_address(NetworkConfig(host=line.host, port=line.port or 0, uds=line.uds)),
        )
    yield "cache", check_cache_folder


def _groups_of_words(start: GivenStart, options: PreflightOptions) -> Iterator[CheckGroup]:
    yield "command_line", lambda: argument_findings(start)
    if start.line.problems:
        return
    yield "flags", lambda: rule_findings(start)
    model = ModelOnDisk(start)
    yield "model", model.findings
    yield "settings", lambda: setting_findings(start, model)
    yield "files", lambda: file_findings(start)
    yield "devices", lambda: device_findings(start, model)
    yield "surroundings", lambda: surroundings_findings(start)
    yield from download_checks(model.downloads, start.value("--hf-token") or None, options)
