"""Why a process has failed. The addition `vllm_cli.explain` finds known causes, if this installation has it.

Nothing of the core imports the addition: `explainer` finds it by its name once it is needed. Without it, only
the last exception of the log is known.
"""

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, Protocol, Self, cast

from envs.redaction import hide_in_command
from startup.logs.formatters import escape_controls

_ADDITION: Final = "vllm_cli.explain"


class Cause(Protocol):
    """Why a process has ended, or a line that may show it."""

    @property
    def text(self) -> str:
        """The exception, or the line that reports the end."""

    @property
    def name(self) -> str | None:
        """The name of the known cause. None if no known cause fits."""

    @property
    def title(self) -> str:
        """What is wrong, in the words of the known cause."""

    @property
    def is_explained(self) -> bool:
        """Whether the cause is known, and says more than that something has failed."""

    @property
    def is_stop(self) -> bool:
        """Whether a signal stopped the server, and nothing had failed before."""

    @property
    def is_guess(self) -> bool:
        """Whether the line only looks like an error, or only says what the start has come to."""

    @property
    def is_waiting(self) -> bool:
        """Whether the line reports that the process waits, and nothing in the log has ended it."""

    @property
    def is_own_fault(self) -> bool:
        """Whether code of this program has failed, not vLLM's."""

    @property
    def is_forked_driver(self) -> bool:
        """Whether a process that already used the GPU was forked."""

    @property
    def is_of_library_import(self) -> bool:
        """Whether an installed module raised an exception while it was imported."""

    def completed(self, phase: str, *, is_embedded: bool) -> Self:
        """The cause with this phase if the log shows none, and with advice for the engine that has failed."""

    def describe_error(self, error: str) -> str:
        """A message about this uncaught error of the embedded engine. Empty if its traceback says more."""

    def lines(self) -> list[str]:
        """The digest in at most four lines. The last line has the code."""

    def to_dict(self) -> dict[str, Any]:
        """The digest as members of a JSON object."""


class Explainer(Protocol):
    """A module that finds causes."""

    def find_cause(self, lines: Iterable[str], /) -> Cause | None:
        """The cause that ended the last run in a log. None if the log shows no failure.

        A line that ends with a carriage return continues in the next one, as a progress bar does.
        """

    def describe_message(self, process: str, message: str, *, has_advice: bool) -> Cause:
        """The cause that an error message about this process shows. `has_advice`: whether it has advice."""


def explainer() -> Explainer:
    """The addition, or what finds only the last exception. The first call reads the addition's tables."""
    spec = find_spec(_ADDITION)
    if spec is not None and spec.origin is not None:  # not a folder with nothing but bytecode
        return cast("Explainer", import_module(f"{_ADDITION}.explainer"))
    from startup.reports.crash import last_exception  # noqa: PLC0415 - not needed beside the addition

    return last_exception


def shown(text: str) -> str:
    """A text of a log without secrets and control characters."""
    return escape_controls(hide_in_command(text))
