"""Runs all checks of a start of vLLM, so that all its faults are reported at once, before heavy imports.

A finding is an error only if this vLLM certainly fails with it; what a plugin, an override or another machine
may change is a warning. Names and flags are those of the installed vLLM (`startup.vllm.facts`).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from envs import foreign
from server.server_config import NetworkConfig
from startup.preflight.address import check_address
from startup.preflight.check_groups import CheckGroup, run_checks
from startup.preflight.disk import check_cache_folder, check_disk
from startup.preflight.report import Finding, PreflightReport
from startup.vllm.command_line import CommandLine
from startup.vllm.facts.installed_facts import read_facts
from startup.vllm.installed import InstalledVllm
from startup.vllm.preflight.arguments import read_arguments
from startup.vllm.preflight.command_line import command_line_findings
from startup.vllm.preflight.devices import device_findings
from startup.vllm.preflight.model import ModelChecks
from startup.vllm.preflight.named_files import file_findings
from startup.vllm.preflight.quantization import quantization_findings
from startup.vllm.preflight.shape import shape_findings
from startup.vllm.preflight.start import CheckedStart
from startup.vllm.preflight.surroundings import surroundings_findings
from startup.vllm.preflight.variables import variable_findings

if TYPE_CHECKING:
    from startup.preflight.hub import HubCheck
    from startup.vllm.preflight.nodes import NodeChecks

_SEVERAL_NODES = ("--nnodes", "--data-parallel-address", "--distributed-executor-backend", "--data-parallel-backend")
_HUB_TIMEOUT_S = 2.0
_UNCERTAIN_AT_HUB = ("cannot be reached", "config.json", "answers")
"""Answers with which vLLM's own client, or another kind of model, may succeed."""


def _check_disk(start: CheckedStart, model: ModelChecks) -> Iterator[Finding]:
    for place in model.downloads():
        yield from check_disk(place)


def run_preflight(vllm: InstalledVllm, line: CommandLine, *, is_listening: bool) -> PreflightReport:
    """Reports every fault at once; never raises for a fault.

    Args:
        vllm: the installed vLLM.
        line: the words of the command line.
        is_listening: whether the launcher listens already, so that the address needs no check.
    """
    return run_checks(_Preflight(vllm, line, is_listening=is_listening).groups())


class _Preflight:
    """One run; what several groups need is read once, within the first group."""

    def __init__(self, vllm: InstalledVllm, line: CommandLine, *, is_listening: bool) -> None:
        self._vllm = vllm
        self._line = line
        self._is_listening = is_listening
        self._known: CheckedStart | None = None
        self._hub_checks: list[HubCheck] = []
        self._nodes: NodeChecks | None = None

    def groups(self) -> Iterator[CheckGroup]:
        """The request to the hub is sent early and evaluated last."""
        yield "words", self._read_words
        if self._known is not None:
            yield from self._groups_of_words(self._known)
        if self._line.listens and not self._is_listening:
            yield "address", self._check_address
        yield "cache", check_cache_folder

    def _read_words(self) -> Sequence[Finding]:
        """Reads facts and words; without the flags of this vLLM, its words have no known meaning."""
        facts = read_facts(self._vllm)
        if facts.flags:
            self._known = CheckedStart(self._vllm, facts, read_arguments(self._line.words, facts))
        return ()

    def _groups_of_words(self, start: CheckedStart) -> Iterator[CheckGroup]:
        yield "command_line", lambda: command_line_findings(start)
        yield "environment", lambda: variable_findings(start.facts)
        if not start.arguments.is_read:
            return
        model = ModelChecks(start)
        yield "hub_request", lambda: self._ask_hub(start, model)
        yield "nodes_request", lambda: self._look_for_nodes(start)
        yield "model", model.findings
        yield "shape", lambda: shape_findings(start, model)
        yield "quantization", lambda: quantization_findings(start, model)
        yield "files", lambda: file_findings(start)
        yield "devices", lambda: device_findings(start, model)
        yield "surroundings", lambda: surroundings_findings(start, self._line.words)
        yield "disk", lambda: _check_disk(start, model)
        yield "nodes", self._check_nodes
        yield "hub", self._check_hub

    def _ask_hub(self, start: CheckedStart, model: ModelChecks) -> Sequence[Finding]:
        for place in model.downloads():
            from startup.preflight.hub import HubCheck

            token = start.value("--hf-token") or None
            self._hub_checks.append(HubCheck(place, token=token, timeout_s=_HUB_TIMEOUT_S))
        return ()

    def _look_for_nodes(self, start: CheckedStart) -> Sequence[Finding]:
        if start.has(*_SEVERAL_NODES):
            from startup.vllm.preflight.nodes import NodeChecks

            self._nodes = NodeChecks(start)
        return ()

    def _check_nodes(self) -> Iterable[Finding]:
        return self._nodes.findings() if self._nodes is not None else ()

    def _check_address(self) -> Iterable[Finding]:
        return check_address(NetworkConfig(host=self._line.host, port=self._line.port or 0, uds=self._line.uds))

    def _check_hub(self) -> Iterator[Finding]:
        """A refusal is certain only if vLLM asks with the same token."""
        is_certain = not foreign.is_set("HF_TOKEN_PATH")
        for check in self._hub_checks:
            for finding in check.findings():
                is_uncertain = any(part in finding.message for part in _UNCERTAIN_AT_HUB)
                if finding.severity == "error" and (is_uncertain or not is_certain):
                    yield finding._replace(severity="warning")
                else:
                    yield finding
