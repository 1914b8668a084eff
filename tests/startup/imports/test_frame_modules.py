"""Frames have the module that `inspect.getmodule` finds by comparing files."""

import inspect
import sys
from types import FrameType

import pytest

from startup.imports.frame_modules import quick_frame_modules


def frame_here() -> FrameType:
    return sys._getframe(1)


def frame_of_generated_code() -> FrameType:
    namespace = {"frame_here": frame_here, "__name__": __name__}
    exec("def generated():\n    return frame_here()\nframe = generated()", namespace)
    frame = namespace["frame"]
    assert isinstance(frame, FrameType)
    return frame


@pytest.mark.parametrize("frame", [frame_here(), frame_of_generated_code()], ids=["module", "generated"])
def test_a_frame_has_the_module_that_inspect_finds(frame: FrameType) -> None:
    expected = inspect.getmodule(frame)
    with quick_frame_modules():
        assert inspect.getmodule(frame) is expected


@pytest.mark.parametrize("thing", [inspect, FrameType, frame_here, 1], ids=["module", "class", "function", "other"])
def test_other_objects_are_looked_up_as_before(thing: object) -> None:
    expected = inspect.getmodule(thing)
    with quick_frame_modules():
        assert inspect.getmodule(thing) is expected


def test_inspect_is_as_before_afterwards() -> None:
    before = inspect.getmodule
    with quick_frame_modules():
        assert inspect.getmodule is not before
    assert inspect.getmodule is before


def test_no_path_is_resolved_for_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str) -> str:
        raise AssertionError(path)

    with quick_frame_modules():
        monkeypatch.setattr("os.path.realpath", fail)
        assert inspect.getmodule(frame_here()) is sys.modules[__name__]
