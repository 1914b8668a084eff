"""Actions run before, after or instead of a module's code. Exports of packages may be patched late."""

import builtins
import importlib
import logging
import pickle
import sys
from contextlib import nullcontext
from importlib.util import find_spec
from types import ModuleType

import pytest

from startup.hook import Hook, Name, Text
from startup.imports.finder import after_import, before_import, cancel, wrap_after_import
from startup.imports.late_modules import is_loaded
from startup.imports.late_names import LateImport, LateName, late_names
from startup.imports.late_packages import make_late
from tests.startup.conftest import ToyPackages


def test_hook_runs_once_right_after_the_import(toys):
    toys.write("toy.part", "value = 1\n")
    seen: list[int] = []
    after_import("toy.part", lambda module: seen.append(module.value))
    assert "toy" not in sys.modules
    spec = find_spec("toy.part")  # without importing the module
    assert spec is not None and spec.origin is not None and spec.origin.endswith("part.py")
    assert seen == []
    module = importlib.import_module("toy.part")
    importlib.import_module("toy.part")
    assert seen == [1]
    assert module.__spec__.loader is module.__loader__
    assert "Acting" not in type(module.__loader__).__name__
    after_import("toy.part", lambda module: seen.append(-module.value))
    assert seen == [1, -1], "it runs at once for a loaded module"


_MOVED = """
import importlib
import sys

_real = importlib.import_module("shimmed.new.launcher")
sys.modules[__name__] = _real
"""


@pytest.mark.parametrize("imported", ["shimmed.new.launcher", "shimmed.old.launcher"])
def test_a_hook_follows_a_shim_to_its_module(imported, toys):
    """vLLM's RFC 54653 proposes such shims for all modules that move."""
    toys.write("shimmed.new.launcher", "def serve(port):\n    return port\n")
    toys.write("shimmed.old.launcher", _MOVED)
    name = Name("shimmed.old.launcher", "serve", ("port",))
    text = Text("shimmed.old.launcher", r"def serve\(", "serve()")
    hook = Hook("planted", does="something", without="nothing", promise="much", needs=(name, text))
    assert (name.loaded, hook.applies) == (None, True)
    wrap_after_import(name, lambda serve: lambda port: serve(port) + 1, hook)
    module = importlib.import_module(imported)
    assert module.serve(1) == 2
    assert name.loaded is module
    assert list(hook.problems()) == []
    changed = Name("shimmed.old.launcher", "absent")
    assert list(Hook("changed", does="", without="", promise="much", needs=(changed,)).problems()) == [
        "shimmed.old.launcher has no absent"
    ]


def test_a_failed_import_keeps_the_hook_for_the_next_one(toys):
    toys.write("toy", "raise ValueError('not yet')\n")
    seen: list[str] = []
    after_import("toy", lambda module: seen.append(module.__name__))
    with pytest.raises(ValueError, match="not yet"):
        importlib.import_module("toy")
    assert seen == []
    toys.write("toy", "# now, and longer than before\n")
    importlib.import_module("toy")
    assert seen == ["toy"]


def test_a_hook_that_raises_is_a_warning(toys, caplog):
    toys.write("toy")
    after_import("toy", lambda module: module.is_not_there)
    assert importlib.import_module("toy").__name__ == "toy"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "toy is not as expected" in record.getMessage()


def test_an_action_before_the_import_can_set_names_for_the_modules_code(toys):
    toys.write("toy", "value = given + 1\n")
    toys.write("other", "given = None\n")
    seen: list[str] = []

    def give(module: ModuleType) -> None:
        vars(module)["given"] = 4
        seen.append(module.__name__)

    before_import("toy", give)
    before_import("other", give)
    cancel("other", give)
    assert importlib.import_module("toy").value == 5
    importlib.import_module("other")
    assert seen == ["toy"]
    cancel("toy", give)


_HEAVY = """
class Tool:
    size = 3

    def __init__(self, name="plain"):
        self.name = name

def make(*words):
    return words
"""
_IMPORTER = """
import heavy.part
from heavy.part import Tool, make as build

def annotated(tool: Tool | None, other: heavy.part.Tool) -> "Tool": ...
def is_tool(value): return isinstance(value, Tool)
def new(): return Tool("new")
"""
_LATE = (LateImport("light", "heavy.part"),)


@pytest.fixture
def late_toys(toys: ToyPackages) -> ToyPackages:
    toys.write("heavy.part", _HEAVY)
    toys.write("light.__init__", _IMPORTER.replace("import heavy.part\n", "").replace("heavy.part.Tool", "Tool"))
    return toys


def _import_light() -> ModuleType:
    with late_names(_LATE):
        return importlib.import_module("light")


def test_a_listed_import_is_delayed_until_a_name_is_used(late_toys):
    light = _import_light()
    assert "heavy.part" not in sys.modules
    assert not light.is_tool(3)
    assert "heavy.part" not in sys.modules, "no instance of a class can exist before its module"
    stand_in, build = vars(light)["Tool"], vars(light)["build"]
    assert build(1, 2) == (1, 2)
    assert light.is_tool(sys.modules["heavy.part"].Tool()), "the stand-in for Tool was not used"
    assert not hasattr(stand_in, "missing")
    assert stand_in.size == 3
    assert (type(stand_in), vars(light)["Tool"]) == (LateName, sys.modules["heavy.part"].Tool)


@pytest.mark.parametrize("is_loaded", [True, False], ids=["loaded", "not_loaded"])
def test_a_delayed_import_of_a_package_that_was_installed_anew_meanwhile_is_refused(is_loaded, late_toys):
    light = _import_light()
    if is_loaded:
        importlib.import_module("heavy.part")
    late_toys.write("heavy.__init__", "version = 'another one'\n")
    anew = pytest.raises(ImportError, match="heavy was installed anew while this server was running")
    with nullcontext() if is_loaded else anew:
        assert light.build(1, 2) == (1, 2)


def test_a_stand_in_can_be_a_base_class_and_is_pickled_as_the_real_object(late_toys):
    stand_in = vars(_import_light())["Tool"]

    class Own(stand_in):  # type: ignore[misc, valid-type]
        pass

    assert Own.__mro__[1] is sys.modules["heavy.part"].Tool
    assert Own("x").name == "x"
    assert pickle.loads(pickle.dumps(stand_in)) is sys.modules["heavy.part"].Tool


def test_other_modules_import_the_real_object(late_toys):
    late_toys.write("other.__init__", "from heavy.part import Tool\n")
    with late_names(_LATE):
        light, other = importlib.import_module("light"), importlib.import_module("other")
    assert type(vars(light)["Tool"]) is LateName
    assert other.Tool is sys.modules["heavy.part"].Tool is light.Tool
    assert vars(light)["Tool"] is other.Tool
    assert type(light) is not ModuleType
    assert light.build is sys.modules["heavy.part"].make
    assert type(light) is ModuleType, "it has no late names any more"


def test_a_loaded_module_is_not_replaced(late_toys):
    importlib.import_module("heavy.part")
    assert _import_light().Tool is sys.modules["heavy.part"].Tool


_ANNOTATED = "import parts\ndef new(tool: parts.Tool | None = None) -> parts.Tool | None: return parts.Tool()\n"


@pytest.mark.parametrize(
    ("module", "importer"),
    [
        ("parts", _ANNOTATED),
        ("light.part", "from .part import Tool as new\n"),
        ("light.part", "from light import other, part\ndef new(): return part.Tool()\n"),
    ],
)
def test_a_whole_module_can_stand_in_annotations_and_a_relative_import_is_found(module, importer, late_toys):
    late_toys.write("parts.__init__", _HEAVY)
    late_toys.write("light.part", _HEAVY)
    late_toys.write("light.other", "")
    late_toys.write("light.__init__", importer)
    with late_names((LateImport("light", module),)):
        light = importlib.import_module("light")
    assert not is_loaded(module)
    assert isinstance(light.new(), sys.modules[module].Tool)


def test_an_import_whose_package_is_missing_fails_as_it_would(late_toys):
    late_toys.write("light.__init__", "try:\n    from absent.part import x\nexcept ImportError:\n    x = None\n")
    with late_names((LateImport("light", "absent.part", requires="absent"),)):
        assert importlib.import_module("light").x is None


def test_functions_of_the_module_have_the_usual_built_in_names(late_toys):
    late_toys.write(
        "light.__init__", "from heavy.part import Tool\ndef load():\n    import heavy.part\n    return heavy\n"
    )
    light = _import_light()
    assert light.load.__builtins__ is vars(builtins)
    assert vars(light)["__builtins__"] is vars(builtins)
    assert light.load() is sys.modules["heavy"]


@pytest.mark.parametrize("is_used", [False, True], ids=["late", "used before"])
def test_a_delayed_import_of_a_late_packages_name_imports_it_when_it_is_used(toys, is_used):
    toys.write("offers.tool", "class Tool: size = 3\n")
    toys.write("offers.__init__", "from .tool import Tool\n")
    toys.write("light", "from offers import Tool\nAlias = Tool\n")
    make_late({"offers": ()})
    offers = importlib.import_module("offers")
    if is_used:
        assert offers.Tool.size == 3
    with late_names([LateImport("light", "offers")]):
        light = importlib.import_module("light")
    assert ("offers.tool" in sys.modules) == is_used
    assert light.Alias.size == 3
    assert light.Tool is light.Alias is offers.Tool


def test_a_late_package_imports_a_module_when_its_name_is_used(toys):
    toys.write("offers.tool", "from offers import Size\nclass Tool: size = Size()\n")
    toys.write("offers.sizes", "class Size: ...\n")
    toys.write("offers.both", "def both(): return 'module'\n")
    own = "def size(): return Size()\ndef both():\n from .both import both\n return both() + ' and function'\n"
    toys.write("offers.late", "size = size_of_late = 2\n")
    imports = "from .sizes import Size as Size\nfrom .tool import Tool, Tool as Other\nfrom .both import both\n"
    imports += "from . import late\nfrom .late import *\nfrom .same import same\n"
    toys.write("offers.same", "def same(): return 'same'\n")
    toys.write("offers.__init__", imports + own)
    make_late({"offers": ()})
    offers = importlib.import_module("offers")
    assert "offers.sizes" not in sys.modules
    assert (offers.size_of_late, offers.late.size) == (2, 2)
    assert (offers.same(), offers.same()) == ("same", "same")
    exec("from offers import Size", namespace := {})
    assert namespace["Size"] is sys.modules["offers.sizes"].Size is offers.Size
    assert "offers.tool" not in sys.modules
    assert offers.Other is offers.Tool is offers.tool.Tool
    assert isinstance(offers.Tool.size, offers.Size)
    assert type(offers.size()) is offers.Size, "a function of the package uses a late name"
    assert (offers.both(), offers.both()) == ("module and function",) * 2, "an import does not replace the function"
    with pytest.raises(AttributeError, match=r"module 'offers' has no attribute 'Absent'"):
        _ = offers.Absent


@pytest.mark.parametrize(
    "look",
    [
        dir,
        lambda offers: sorted(vars(offers)),
        lambda offers: offers.__dict__["Tool"].size,
        lambda offers: (importlib.reload(offers) is offers, dir(offers)),
        lambda offers: exec("from offers import *", names := {}) or sorted(names.keys() - {"__builtins__"}),
        lambda offers: setattr(offers, "Tool", 3) or exec("from offers import Tool", names := {}) or names["Tool"],
    ],
    ids=["dir", "vars", "__dict__", "reload", "star", "set"],
)
def test_a_late_package_looks_like_another_one(look, toys):
    toys.write("offers.tool", "class Tool: size = 3\n")
    toys.write("offers.extra", "")
    toys.write("offers.__init__", "from .tool import Tool\nfrom . import extra\n")
    plain = look(importlib.import_module("offers"))
    for name in ("offers", "offers.tool", "offers.extra"):
        del sys.modules[name]
    make_late({"offers": ()})
    offers = importlib.import_module("offers")
    assert "offers.tool" not in sys.modules
    assert not is_loaded("offers.extra")
    assert str(look(offers)) == str(plain)


def test_a_late_package_that_fails_names_its_error_at_the_first_use(toys):
    toys.write("offers.tool", "import absent\n")
    toys.write("offers.__init__", "from .tool import Tool\n")
    make_late({"offers": ()})
    with pytest.raises(ModuleNotFoundError, match="No module named 'absent'"):
        _ = importlib.import_module("offers").Tool


def test_a_module_that_needs_the_package_s_names_gets_them_first(toys):
    toys.write("offers.light", "size = 1\n")
    toys.write("offers.package.light", "from ..light import size\n")
    toys.write("offers.tool", "from offers.parts import Part\nclass Tool: part = Part\n")
    toys.write("offers.parts", "class Part: ...\nfrom offers.tool import Tool\n")
    toys.write("offers.__init__", "from .parts import Part\n")
    make_late({"offers": ("offers.light", "offers.package.")}, is_known=True)
    assert importlib.import_module("offers.package.light").size == 1
    assert "offers.parts" not in sys.modules
    assert (tool := importlib.import_module("offers.tool")) is sys.modules["offers.tool"]
    assert tool.Tool.part is sys.modules["offers"].Part is sys.modules["offers.parts"].Part
    assert tool.__spec__.loader.name == "offers.tool"
