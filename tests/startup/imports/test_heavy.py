"""Heavy imports are serial, on the main thread, and leave collector and `inspect` as they were."""

import inspect
import subprocess
import sys
import threading
from types import FrameType

import pytest

from startup.imports.heavy import import_serially, quick_frame_modules


def test_another_thread_is_rejected() -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            import_serially(["json"])
        except RuntimeError as err:
            errors.append(err)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])


def test_collector_is_off_during_the_imports_and_on_afterwards() -> None:
    code = (
        "import gc, sys\n"
        "from startup.imports.heavy import import_serially\n"
        "seen = []\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        seen.append(gc.isenabled())\n"
        "sys.meta_path.insert(0, Finder())\n"
        "import_serially(['wave', 'tabnanny'])\n"
        "print(any(seen), len(seen) > 1, gc.isenabled(), gc.get_freeze_count() > 0)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.split() == ["False", "True", "True", "True"]


def test_modules_are_imported_in_the_order_given() -> None:
    code = (
        "import sys\n"
        "from startup.imports.heavy import import_serially\n"
        "import_serially(['wave', 'tabnanny'])\n"
        "names = list(sys.modules)\n"
        "print(names.index('wave') < names.index('tabnanny'))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "True\n"


def test_missing_module_is_an_import_error() -> None:
    with pytest.raises(ModuleNotFoundError):
        import_serially(["no_such_module_anywhere"])


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
