"""Runs a start as a tuple of parts. Each part is one concern, and owns what it does at each moment.

The moments in their order: `begin` and `before_serving` prepare the server, `accepting` and `ready` end the
start, `stopping` and `ended` end the server. The tuple decides which part comes first at a moment.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar, Final, Generic, TypeVar

from envs.variable import EnvError
from startup.errors import StartupError, is_of_machine
from startup.processes import group_signals

logger = logging.getLogger(__name__)

Start = TypeVar("Start")
"""The object with the values of a start that several parts need."""


MOMENTS: Final = ("begin", "before_serving", "accepting", "ready", "stopping", "ended")


class Part(Generic[Start]):
    """One concern of a start. A moment that a part does not have does nothing.

    An exception of `begin` or `before_serving` fails the start, and that of a later moment is logged.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    """The values of the start that parts before this one give."""
    gives: ClassVar[frozenset[str]] = frozenset()
    """The values of the start that this part sets, or replaces."""
    is_optional: ClassVar[bool] = False
    """Whether a start whose part fails goes on without this part. A StartupError ends it all the same."""

    def __init__(self, start: Start) -> None:
        self.start = start

    def begin(self) -> None:
        """Main thread. A part that makes others wait begins first, and waits in `before_serving`."""

    def before_serving(self) -> None:
        """Main thread, once all parts have begun."""

    def accepting(self) -> None:
        """Event loop, before the server accepts connections. Takes milliseconds."""

    def ready(self) -> None:
        """A thread, once the server accepts, from the last part to the first. May take seconds."""

    def stopping(self) -> None:
        """Event loop, before the server stops."""

    def ended(self) -> None:
        """Main thread, from the last part to the first. `sys.exception()` is what has ended the server."""


class Parts(Generic[Start]):
    """The parts of one start. Each moment may be called twice, and comes once."""

    def __init__(self, start: Start, kinds: Sequence[type[Part[Start]]], stack: ExitStack) -> None:
        """`stack` ends the start's resources, after the parts."""
        self._start = start
        self._kinds: Final = kinds
        self._stack = stack
        self._parts: list[Part[Start]] = []
        self._done: set[str] = set()

    def prepare(self) -> None:
        """Calls `begin` of all parts, then `before_serving`. Raises what a needed part raises."""
        for kind in self._kinds:
            part = kind(self._start)
            if self._is_prepared(part, part.begin):
                self._parts.append(part)
        for part in [*self._parts]:
            if not self._is_prepared(part, part.before_serving):
                self._parts.remove(part)
        self._stack.callback(self._call, "ended", self._parts[::-1])

    def _is_prepared(self, part: Part[Start], prepare: Callable[[], None]) -> bool:
        try:
            prepare()
        except (StartupError, EnvError):
            raise
        except Exception as err:
            if not part.is_optional:
                raise
            level = logging.WARNING if is_of_machine(err) else logging.ERROR
            logger.log(level, "the start goes on without %s: %s: %s", _name(part), type(err).__name__, err)
            return False
        return True

    def accepting(self) -> None:
        self._call("accepting", self._parts)

    def begin_ready(self) -> None:
        """Calls `ready` of all parts, on a thread."""
        group_signals.start_thread("start-parts", self._call, "ready", self._parts[::-1])

    def stopping(self) -> None:
        self._call("stopping", self._parts)

    def _call(self, moment: str, parts: Sequence[Part[Start]]) -> None:
        if moment in self._done:
            return
        self._done.add(moment)
        for part in parts:
            try:
                getattr(part, moment)()
            except Exception:  # the server serves all the same
                logger.exception("%s has failed at the moment %r", _name(part), moment)


def _name(part: Part[Any]) -> str:
    return type(part).__name__
