"""The parts that check a start: the preflight, and once more with the flags of vLLM's parser."""

import logging

from startup.session.parts import Part
from startup.session.preflight.all_checks import PreflightOptions
from startup.session.preflight.report import PreflightReport
from startup.vllm.launch.vllm_start import VllmStart
from startup.vllm_arguments.preflight.all_checks import run_preflight
from startup.vllm_arguments.vllm_line import VllmLine
from startup.vllm_arguments.vllm_record import RECORDING

logger = logging.getLogger(__name__)


def _check(start: VllmStart, line: VllmLine) -> PreflightReport:
    return run_preflight(start.vllm, line, PreflightOptions(is_listening=True))


class Preflight(Part[VllmStart]):
    """Prefetches the weights, and checks the start. Errors end it."""

    needs = frozenset({"line"})
    gives = frozenset({"report"})

    def begin(self) -> None:
        start, line = self.start, self.start.line
        start.session.prefetch(line.file_plan.prefetched if line.file_plan else (), start.options.prefetch)
        start.report = start.session.check(lambda: _check(start, line), start.options.preflight)


class ParserCheck(Part[VllmStart]):
    """In a first start, checks the arguments with the flags of vLLM's parser, and keeps these flags.

    So a fault has the message and the exit code of later starts, which read the record of these flags.
    """

    needs = frozenset({"line", "report"})
    gives = frozenset({"report"})

    def begin(self) -> None:
        start, line, first = self.start, self.start.line, self.start.report
        if first is None or line.record.flags or not RECORDING.applies:
            return
        if start.foreign_code:  # vLLM's parser loads plugins, before which plain vLLM has imported more
            return
        try:
            known = start.options.line.read_again(start.record_file.gather())
        except Exception as err:  # noqa: BLE001 - another version of vLLM, which then checks its arguments alone
            logger.debug("vLLM's flags cannot be read: %s", err)
            return
        start.report = _check(start, known)
        if start.report.errors:
            start.record_file.update()
        start.report.without(first.findings).apply(start.options.preflight)

    def ready(self) -> None:
        report = self.start.report
        is_doubted = report is None or bool(report.errors or report.warnings)
        self.start.record_file.update(is_doubted=is_doubted)

    def ended(self) -> None:
        if not self.start.is_ready:
            self.start.record_file.update()  # so that the next start reports a misspelt flag at once
