"""A start calls the moments of its parts in order, on the right threads, each once, also if a part fails."""

import sys
import threading
from contextlib import ExitStack

import pytest

from startup.errors import StartupError
from startup.session.parts import MOMENTS, Part, Parts
from tests.support.waiting import wait_until


class _Start:
    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.threads: dict[str, str] = {}
        self.ended_by: BaseException | None = None


class _First(Part[_Start]):
    def _note(self, moment: str) -> None:
        self.start.calls.append((type(self).__name__, moment))
        self.start.threads[moment] = threading.current_thread().name

    def begin(self) -> None:
        self._note("begin")

    def before_serving(self) -> None:
        self._note("before_serving")

    def accepting(self) -> None:
        self._note("accepting")

    def ready(self) -> None:
        self._note("ready")

    def stopping(self) -> None:
        self._note("stopping")

    def ended(self) -> None:
        self._note("ended")
        self.start.ended_by = sys.exception()


class _Second(_First):
    pass


def _failing(moment: str, *, error: Exception, optional: bool = True) -> type[_First]:
    def fail(self: _First) -> None:
        raise error

    return type("_Failing", (_First,), {moment: fail, "is_optional": optional})


def _run(*kinds: type[_First]) -> _Start:
    """Runs a whole start with these parts."""
    start = _Start()
    with ExitStack() as stack:
        parts = Parts(start, kinds, stack)
        parts.prepare()
        for _ in range(2):
            parts.accepting()
            parts.begin_ready()
            parts.stopping()
        wait_until(lambda: (kinds[0].__name__, "ready") in start.calls)
    return start


def _parts_at(start: _Start, moment: str) -> list[str]:
    return [part for part, called in start.calls if called == moment]


def test_each_moment_comes_once_and_the_last_parts_are_ready_and_ended_first():
    start = _run(_First, _Second)
    assert list(dict.fromkeys(moment for _, moment in start.calls if moment != "ready")) == [
        moment for moment in MOMENTS if moment != "ready"
    ]
    for moment in MOMENTS:
        order = ["_First", "_Second"]
        assert _parts_at(start, moment) == (order[::-1] if moment in ("ready", "ended") else order)
    assert start.threads.pop("ready") != threading.main_thread().name
    assert set(start.threads.values()) == {threading.main_thread().name}


@pytest.mark.parametrize("moment", ["begin", "before_serving"])
def test_a_start_goes_on_without_an_optional_part(moment, caplog):
    start = _run(_First, _failing(moment, error=OSError("no room")), _Second)
    (record,) = caplog.records
    assert record.getMessage() == "the start goes on without _Failing: OSError: no room"
    assert _parts_at(start, "accepting") == ["_First", "_Second"]


@pytest.mark.parametrize(
    ("error", "optional"), [(ValueError("a fault"), False), (StartupError("refused"), True)], ids=["part", "refusal"]
)
def test_a_needed_part_and_a_refusal_end_the_start(error, optional):
    start = _Start()
    with pytest.raises(type(error), match=str(error)), ExitStack() as stack:
        Parts(start, (_First, _failing("begin", error=error, optional=optional), _Second), stack).prepare()
    assert start.calls == [("_First", "begin")]


@pytest.mark.parametrize("moment", ["accepting", "ready", "stopping", "ended"])
def test_a_fault_after_the_preparation_is_logged_and_other_parts_go_on(moment, caplog):
    start = _run(_First, _failing(moment, error=ValueError("a fault")), _Second)
    (record,) = caplog.records
    assert record.getMessage() == f"_Failing has failed at the moment {moment!r}"
    assert sorted(_parts_at(start, moment)) == ["_First", "_Second"]


def test_parts_see_what_has_ended_the_server():
    error = StartupError("the server has failed")
    start = _Start()
    with pytest.raises(StartupError), ExitStack() as stack:
        Parts(start, (_First,), stack).prepare()
        raise error
    assert start.ended_by is error
    assert _run(_First).ended_by is None
