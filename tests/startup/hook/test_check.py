"""Hooks are compared with files, and after an import with modules. The table of hooks is complete."""

import ast
import importlib
import itertools
import logging
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final, get_args

import pytest

from startup import hook as hook_module
from startup.hook import Hook, Name, Need, StartPart, Text, UnfitHookError, hooks_of, unfit
from startup.imports.finder import after_import, wrap_after_import
from startup.processes import forkserver, new_program
from startup.vllm.launch.hooks import HOOKS, PARTS, find_obstacle, names_that_cannot_be_left_out
from startup.vllm.patches.placing import PLACED_IN
from tests.support.cli import python_output
from tools.figures.gains import all_parts, gains_of
from tools.figures.record import Figures

_MODULE = """
import os.path as path
from dataclasses import dataclass, field
from functools import lru_cache

VALUE = 1

def call(first, second=None, *, third, fourth=None):
    return first.known, first.other, path.third

def anything(*args, **kwargs): ...

@lru_cache
def kept(one): ...

class Owner:
    setting: int = 1

    def __init__(self) -> None:
        self.state = 0

    async def method(self, first): ...

@dataclass
class Data:
    values: list = field(default_factory=list)
"""
_SOURCES = {
    "__init__": "",
    "inner": "def moved(argument): return argument.read, argument.written\n",
    "outer": "from .inner import moved as renamed\n",
    "module": _MODULE,
}
_NUMBER = itertools.count()

ROOT = Path(__file__).parents[3]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package that is not imported yet."""
    name = f"planted{next(_NUMBER)}"
    (tmp_path / name).mkdir()
    for module, source in _SOURCES.items():
        (tmp_path / name / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(hook_module, "_unfit", {})
    monkeypatch.setattr(hook_module._State, "release", None)
    yield name
    for module in [each for each in sys.modules if each.partition(".")[0] == name]:
        del sys.modules[module]


def _hook(*needs: Need, is_essential: bool = False) -> Hook:
    return Hook("planted", does="something", without="nothing", promise="much", needs=needs, is_essential=is_essential)


def _in_module(path: str, *parameters: str, module: str = "module") -> Name:
    return Name(f"PACKAGE.{module}", path, parameters or None)


CALL = _in_module("call", "first", "third")


def _of(need: Need, package: str) -> Need:
    """The same need, for this package."""
    return eval(repr(need).replace("PACKAGE", package))


def _imported(need: Need, package: str) -> list[str]:
    for module in _SOURCES:
        importlib.import_module(f"{package}.{module}")
    return [reason.replace(package, "PACKAGE") for reason in _hook(_of(need, package)).problems()]


@pytest.mark.parametrize(
    "need",
    [
        Name("PACKAGE"),
        *map(_in_module, ("VALUE", "path", "Owner", "Owner.setting", "Owner.state", "call", "Data.values")),
        CALL,
        _in_module("call", "first", "second", "third", "fourth"),
        _in_module("anything", "whatever"),
        _in_module("kept", "one"),
        _in_module("Owner.method", "first"),
        _in_module("renamed", "argument", module="outer"),
        Text("PACKAGE.module", r"^VALUE = \d", "a value"),
        Name("absent_package.module", "name"),
    ],
    ids=str,
)
def test_what_is_there_applies(need, package):
    assert _imported(need, package) == []


@pytest.mark.parametrize(
    ("need", "reason"),
    [
        (Name("PACKAGE.absent"), "module PACKAGE.absent is missing"),
        (Name("PACKAGE.absent", "name"), "module PACKAGE.absent is missing"),
        *((_in_module(path), f"PACKAGE.module has no {path}") for path in ("absent", "state", "Owner.other")),
        (_in_module("call", "first"), "PACKAGE.module.call needs third"),
        (_in_module("call", "first", "third", "fifth"), "PACKAGE.module.call takes no fifth"),
        (Name("PACKAGE.module", "Owner.method", ()), "PACKAGE.module.Owner.method needs first"),
        (Text("PACKAGE.module", "absent", "a word"), "PACKAGE.module: a word is not found"),
    ],
    ids=str,
)
def test_what_is_missing_or_changed_is_named(need, reason, package):
    assert _imported(need, package) == [reason]


@pytest.mark.parametrize(
    ("need", "is_known"),
    [(CALL, False), (Text("PACKAGE.module", "absent", "a word"), True), (Name("PACKAGE.absent"), True)],
    ids=["name", "text", "module"],
)
def test_texts_and_modules_are_looked_for_without_an_import(need, is_known, package, caplog):
    assert _hook(_of(need, package)).applies is not is_known
    assert package not in sys.modules
    assert unfit() == (("planted",) if is_known else ())


def test_a_hook_is_left_out_where_it_would_be_placed(package, caplog):
    called: list[object] = []
    name = Name(f"{package}.module", "call", ("none",))
    with caplog.at_level(logging.WARNING):
        wrap_after_import(name, called.append, _hook(name))
        after_import(name.module, called.append, _hook(name))
        importlib.import_module(name.module)
    assert called == []
    (record,) = caplog.records
    assert "starts without some speed-ups, since these hooks do not fit: 'planted'; `vllm-cli" in record.getMessage()


def test_an_essential_hook_ends_the_import(package):
    name = Name(f"{package}.module", "absent")
    after_import(name.module, lambda _: None, _hook(name, is_essential=True))
    with pytest.raises(UnfitHookError, match="the hook 'planted' does not fit this version .*has no absent"):
        importlib.import_module(name.module)


def test_a_module_that_is_being_imported_is_not_checked(package, tmp_path):
    (tmp_path / package / "module.py").write_text(
        "from startup.hook import Hook, Name\n"
        f"hook = Hook('planted', does='', without='', promise='much', needs=(Name('{package}.module', 'late'),))\n"
        "early = hook.applies\nlate = 1\n"
    )
    module = importlib.import_module(f"{package}.module")
    assert (module.early, module.hook.applies) == (True, True)


def test_this_python_has_what_essential_hooks_need():
    for need in forkserver.NEEDS:
        importlib.import_module(need.module)
    assert find_obstacle() is None


def test_a_part_is_left_out_alone(package, monkeypatch, caplog):
    whole = _hook(_of(CALL, package))
    broken, fine = whole.part(Name(f"{package}.absent")), whole.part(Name(f"{package}.module", "VALUE"))
    assert [hook.applies for hook in (whole, broken, fine)] == [True, False, True]
    assert unfit() == ("planted",)
    monkeypatch.setenv("VCLI_LEAVE_OUT", "planted")
    assert [hook.applies for hook in (whole, broken, fine)] == [False, False, False]


def test_a_part_for_other_releases_is_not_placed(package, caplog):
    whole = _hook(_of(CALL, package))
    old, new = (
        whole.part(Name(f"{package}.absent"), until=(0, 30)),
        whole.part(Name(f"{package}.module"), since=(0, 31)),
    )
    hook_module.place_only_for((0, 32))
    assert [hook.applies for hook in (whole, old, new)] == [True, False, True]
    assert unfit() == ()


def test_names_are_unique_and_every_hook_is_described():
    assert sum(map(len, PARTS.values())) == len(HOOKS)
    assert [hook.name for hook in HOOKS if not (hook.does and hook.without and hook.needs)] == []


def test_a_hook_makes_a_start_faster_or_keeps_a_promise_or_is_essential():
    Hook("planted", does="something", without="nothing", needs=(), is_essential=True)
    with pytest.raises(ValueError, match="'planted' names no start that it makes faster, and keeps no promise"):
        Hook("planted", does="something", without="nothing", needs=())


_NOT_MEASURED: Final = {
    *("CUDA graphs", "cached scans", "cheap calls", "compiler keys", "deferred compiler", "early kernels"),
    *("import file", "kept tokenizers", "kernel overrides", "lean imports", "memory of the KV cache", "model's class"),
    *("stand-ins of the embedded engine", "tokenizer loaded once", "unused imports", "unused warm-ups"),
    *("vector probes", "wait for the engine"),
}
"""Parts without a promise whose gain no file of figures has. A measurement takes a part off this list."""


def test_each_part_has_a_stored_gain_or_keeps_a_promise():
    """`make figures ARGS="--hooks"` stores gains. A part that gains nothing goes, or names its promise."""
    figures, parts = Figures(), all_parts()
    assert parts.keys() == PARTS.keys() | {*get_args(StartPart)}
    gains = {name: gains_of(part, figures) for name, part in parts.items() if not (part.is_essential or part.promise)}
    unproven = {name for name, found in gains.items() if not any(gain.is_enough for gain in found)}
    known = {name for name in unproven if {*parts[name].gain_in} <= {gain.start for gain in gains[name]}}
    assert known == set(), "measured in all starts that they name, and without a gain"
    assert unproven - known == _NOT_MEASURED


def test_a_variable_leaves_hooks_out_with_their_parts(monkeypatch):
    monkeypatch.setenv("VCLI_LEAVE_OUT", "spans, unused imports")
    assert [hook.name for hook in HOOKS if not hook.applies] == [*["unused imports"] * 3, "spans"]
    assert names_that_cannot_be_left_out({"spans", "port", "early", "import file"}) == ["early", "port"]


def test_the_internals_of_multiprocessing_that_are_used_are_declared():
    """Names in `__all__` of their module need no declaration."""
    modules = {name: import_module(f"multiprocessing.{name}") for name in ("popen_spawn_posix", "popen_forkserver")}
    modules |= {name: import_module(f"multiprocessing.{name}") for name in ("spawn", "util", "resource_tracker")}
    declared = {part for need in forkserver.NEEDS if isinstance(need, Name) for part in need.path.split(".")}
    used = {
        node.attr
        for module in (forkserver, new_program)
        for node in ast.walk(ast.parse(Path(module.__file__).read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
        if node.attr not in modules[node.value.id].__all__
    }
    assert used - declared == set()


def test_every_declared_hook_is_in_the_table():
    texts = [path.read_text() for path in (ROOT / "startup").rglob("*.py")]
    assert sum(text.count(": Final = Hook(") for text in texts) == len(PARTS)


def test_each_declared_change_is_placed_in_some_process():
    placed = {hook for hook in hooks_of(*PLACED_IN) if hook.places}
    assert [hook.name for hook in HOOKS if hook.changes and hook not in placed] == []


@pytest.mark.thorough
def test_hooks_are_declared_without_importing_what_they_are_about():
    code = (
        "import startup.vllm.launch.hooks, sys; print(*{'torch', 'transformers', 'vllm', 'uvicorn'} & {*sys.modules})"
    )
    assert find_spec("torch") is not None
    assert python_output(code).split() == []
