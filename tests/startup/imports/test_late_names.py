"""A listed import gives stand-ins that behave like the real objects, which their first use imports."""

import builtins
import importlib
import pickle
import sys
from types import ModuleType

import pytest

from startup.vllm.patches.late_imports import LateImport, late_names
from tests.startup.toy_package import ToyPackages

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
def packages(toys: ToyPackages) -> ToyPackages:
    toys.write("heavy.part", _HEAVY)
    toys.write("light.__init__", _IMPORTER.replace("import heavy.part\n", "").replace("heavy.part.Tool", "Tool"))
    return toys


def _import_light() -> ModuleType:
    with late_names(_LATE):
        return importlib.import_module("light")


def test_a_listed_import_is_delayed_until_a_name_is_used(packages):
    light = _import_light()
    assert "heavy.part" not in sys.modules
    assert not light.is_tool(3)
    assert "heavy.part" not in sys.modules, "no instance of a class can exist before its module"
    assert light.build(1, 2) == (1, 2)
    assert "heavy.part" in sys.modules


def test_the_real_object_takes_the_name_once_it_is_used(packages):
    light = _import_light()
    assert light.new().name == "new"
    assert light.Tool is sys.modules["heavy.part"].Tool


def test_an_instance_is_recognised_though_the_stand_in_was_not_used(packages):
    light = _import_light()
    tool = importlib.import_module("heavy.part").Tool()
    assert light.is_tool(tool)


def test_a_stand_in_has_only_the_attributes_of_the_real_object(packages):
    light = _import_light()
    stand_in = light.Tool
    assert not hasattr(stand_in, "missing")
    assert stand_in.size == 3


def test_a_stand_in_can_be_a_base_class(packages):
    stand_in = _import_light().Tool

    class Own(stand_in):  # type: ignore[misc, valid-type]
        pass

    assert Own.__mro__[1] is sys.modules["heavy.part"].Tool
    assert Own("x").name == "x"


def test_a_stand_in_is_pickled_as_the_real_object(packages):
    stand_in = _import_light().Tool
    assert pickle.loads(pickle.dumps(stand_in)) is sys.modules["heavy.part"].Tool


def test_other_modules_import_the_real_object(packages):
    packages.write("other.__init__", "from heavy.part import Tool\n")
    with late_names(_LATE):
        light, other = importlib.import_module("light"), importlib.import_module("other")
    assert other.Tool is sys.modules["heavy.part"].Tool
    assert light.Tool is not other.Tool
    assert light.Tool.size == 3
    assert light.Tool is other.Tool


def test_a_loaded_module_is_not_replaced(packages):
    importlib.import_module("heavy.part")
    assert _import_light().Tool is sys.modules["heavy.part"].Tool


def test_a_whole_module_can_stand_in_annotations(packages):
    packages.write("parts.__init__", "class Tool: ...\n")
    packages.write(
        "light.__init__", "import parts\ndef f(tool: parts.Tool) -> parts.Tool | None: return parts.Tool()\n"
    )
    with late_names((LateImport("light", "parts"),)):
        light = importlib.import_module("light")
    assert "parts" not in sys.modules
    assert isinstance(light.f(None), sys.modules["parts"].Tool)


def test_an_import_whose_package_is_missing_fails_as_it_would(packages):
    packages.write("light.__init__", "try:\n    from absent.part import x\nexcept ImportError:\n    x = None\n")
    with late_names((LateImport("light", "absent.part", requires="absent"),)):
        assert importlib.import_module("light").x is None


def test_a_relative_import_is_found(packages):
    packages.write("light.part", _HEAVY)
    packages.write("light.__init__", "from .part import Tool\n")
    with late_names((LateImport("light", "light.part"),)):
        light = importlib.import_module("light")
    assert "light.part" not in sys.modules
    assert light.Tool.size == 3


def test_functions_of_the_module_have_the_usual_built_in_names(packages):
    packages.write(
        "light.__init__", "from heavy.part import Tool\ndef load():\n    import heavy.part\n    return heavy\n"
    )
    light = _import_light()
    assert light.load.__builtins__ is vars(builtins)
    assert vars(light)["__builtins__"] is vars(builtins)
    assert light.load() is sys.modules["heavy"]
