"""Runs all checks of a start of vLLM, so that all its faults are reported at once, before heavy imports.

A finding is an error only if this vLLM certainly fails with it; what a plugin, an override or another machine
may change is a warning. Names and flags are those of the installed vLLM (`startup.vllm.facts`).
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from server.server_config import NetworkConfig
from startup.preflight.address import check_address
from startup.preflight.check_groups import CheckGroup, run_checks
from startup.preflight.disk import check_cache_folder, check_disk
from startup.preflight.places import check_hub
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


def run_preflight(
    vllm: InstalledVllm, line: CommandLine, *, is_listening: bool, asks_hub: bool = False
) -> PreflightReport:
    """Reports every fault at once; never raises for a fault.

    Args:
        vllm: the installed vLLM.
        line: the words of the command line.
        is_listening: whether the launcher listens already, so that the address needs no check.
        asks_hub: whether the hub is asked about a download; otherwise the download itself reports what it answers.
    """
    return run_checks(_Preflight(vllm, line, is_listening=is_listening, asks_hub=asks_hub).groups())


class _Preflight:
    """One run; what several groups need is read once, within the first group."""

    def __init__(self, vllm: InstalledVllm, line: CommandLine, *, is_listening: bool, asks_hub: bool) -> None:
        self._vllm = vllm
        self._line = line
        self._is_listening = is_listening
        self._asks_hub = asks_hub
        self._known: CheckedStart | None = None

    def groups(self) -> Iterator[CheckGroup]:
        """Groups of checks in their order."""
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
        yield "model", model.findings
        yield "shape", lambda: shape_findings(start, model)
        yield "quantization", lambda: quantization_findings(start, model)
        yield "files", lambda: file_findings(start)
        yield "devices", lambda: device_findings(start, model)
        yield "surroundings", lambda: surroundings_findings(start, self._line.words)
        yield "disk", lambda: chain.from_iterable(map(check_disk, model.downloads()))
        if self._asks_hub:
            token = start.value("--hf-token") or None
            yield "hub", lambda: chain.from_iterable(check_hub(place, token) for place in model.downloads())

    def _check_address(self) -> Iterable[Finding]:
        return check_address(NetworkConfig(host=self._line.host, port=self._line.port or 0, uds=self._line.uds))
