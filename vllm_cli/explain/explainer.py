"""Finds and prints causes for the core, which knows this module only by its name (`crash/explanation.py`)."""

from collections.abc import Iterable
from typing import Any, Final, Self

from startup.errors import OWN_FAULT_CAUSE
from startup.reports.crash import explanation
from vllm_cli.explain import first_cause
from vllm_cli.explain.cause import Cause
from vllm_cli.explain.digest import digest_to_dict, for_embedded_engine, write_digest
from vllm_cli.explain.table import FORKED_DRIVER, known_in

_OF_THIS_PROGRAM: Final = "own"
"""The source of a known cause that is an error of this program."""


class ExplainedCause(Cause):
    """A cause with the members that the core uses, which describes them."""

    __slots__ = ()

    @property
    def name(self) -> str | None:
        return self.known.name if self.known else None

    @property
    def title(self) -> str:
        return self.known.title if self.known else ""

    @property
    def is_explained(self) -> bool:
        return self.known is not None and not self.known.is_general

    @property
    def is_own_fault(self) -> bool:
        return self.name == OWN_FAULT_CAUSE

    @property
    def is_forked_driver(self) -> bool:
        return self.known is FORKED_DRIVER

    def completed(self, phase: str, *, is_embedded: bool) -> Self:
        return self._replace(phase=self.phase or phase, is_embedded=is_embedded)

    def describe_error(self, error: str) -> str:
        if self.known is None or not self.is_explained or self.known.source == _OF_THIS_PROGRAM:
            return ""
        return f"{self.title}: {error}. {for_embedded_engine(self.known.advice)}"

    def lines(self) -> list[str]:
        return write_digest(self)

    def to_dict(self) -> dict[str, Any]:
        return digest_to_dict(self)


def find_cause(lines: Iterable[str]) -> explanation.Cause | None:
    """The cause that ended the last run of vLLM in a log. None if the log shows no failure."""
    found = first_cause.find_cause(lines)
    return ExplainedCause(*found) if found else None


def describe_message(process: str, message: str, *, has_advice: bool) -> explanation.Cause:
    """The cause that an error message about this process shows."""
    # Without a log, it is unknown which code raised the exception.
    known = [each for each in known_in(message) if not each.raised_in]
    return ExplainedCause(process, "", message, known[0] if known else None, 0 if has_advice else 1)
