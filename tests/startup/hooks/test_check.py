"""Hooks are compared with planted sources, which are read and not imported; the table of hooks is whole."""

import ast
import subprocess
import sys
from collections import Counter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from startup.hooks.hook import Hook, Name, Need, Reads, Text
from startup.hooks.sources import Finding, Sources, check_hooks, installed_package, packages_beside
from startup.processes import forkserver, new_program
from startup.processes.forkserver import FORKSERVER
from startup.vllm.launch.hooks import HOOKS, names_that_cannot_be_left_out

_MODULE = '''
"""Text with the word hidden
def hidden(): in quotes
"""
import os.path as path
from typing import overload

VALUE = 1

def call(first, second=None, *, third, fourth=None):
    return first.known, first.other, path.third

def anything(*args, **kwargs): ...

if path:
    conditional = 1
else:
    def conditional(one): ...

try:
    from package.inner import moved
except ImportError:
    moved = None

@overload
def twice(a): ...
@overload
def twice(b): ...
def twice(c): ...

text = """
def in_text(): ...
"""

class Owner:
    setting: int = 1

    def __init__(self) -> None:
        self.state = 0

    async def method(self, first): ...
'''
_SOURCES = {
    "__init__": "from .inner import moved as renamed\nfrom absent import lost\n",
    "inner": "def moved(argument): return argument.read, argument.written\n",
    "module": _MODULE,
    "newer": "a = lambda: yield from\n",
}

ROOT = Path(__file__).parents[3]


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    (tmp_path / "package").mkdir()
    for name, source in _SOURCES.items():
        (tmp_path / "package" / f"{name}.py").write_text(source)
    return Sources(packages_beside(tmp_path))


def _check(need: Need, sources: Sources, **hook: tuple[int, int]) -> Finding:
    planted = Hook("planted", does="something", without="nothing", needs=(need,), **hook)
    (finding,) = check_hooks([planted], sources, (0, 32))
    return finding


def _in_module(path: str, *parameters: str) -> Name:
    return Name("package.module", path, parameters or None)


CALL = _in_module("call", "first", "third")


@pytest.mark.parametrize(
    "need",
    [
        Name("package"),
        *map(_in_module, ("VALUE", "path", "conditional", "text", "Owner", "Owner.setting", "Owner.state", "call")),
        CALL,
        _in_module("call", "first", "second", "third", "fourth"),
        _in_module("anything", "whatever"),
        _in_module("conditional", "one"),
        _in_module("twice", "c"),
        _in_module("Owner.method", "first"),
        Name("package", "renamed", ("argument",)),
        Name("package", "lost", ("of a package that is not there",)),
        Text(("package.absent", "package.module"), r"^VALUE = \d", "a value"),
        Reads(CALL, "first", ("known", "other", "more")),
        Reads(Name("package", "renamed"), "argument", ("read", "written")),
    ],
    ids=str,
)
def test_what_is_there_applies(need, sources):
    assert _check(need, sources) == Finding("planted", "applies")


@pytest.mark.parametrize(
    ("need", "reason"),
    [
        (Name("package.absent"), "module package.absent is missing"),
        (Name("package.absent", "name"), "module package.absent is missing"),
        (Name("package.newer", "a"), "package.newer has no a"),
        *((_in_module(path), f"package.module has no {path}") for path in ("absent", "hidden", "state", "Owner.other")),
        (_in_module("call", "first"), "package.module.call needs third"),
        (_in_module("call", "first", "third", "fifth"), "package.module.call takes no fifth"),
        (_in_module("twice", "a"), "package.module.twice takes no a"),
        (Name("package.module", "Owner.method", ()), "package.module.Owner.method needs first"),
        (
            Text(("package.module", "package.other"), "absent", "a word"),
            "package.module or package.other: a word is not",
        ),
        (Reads(CALL, "first", ("known",)), "package.module.call reads other of first too"),
    ],
    ids=str,
)
def test_what_is_missing_or_changed_is_named(need, reason, sources):
    finding = _check(need, sources)
    assert finding.state == "does not fit"
    assert finding.reasons[0].startswith(reason)


def test_a_package_that_is_not_there_is_not_checked(sources):
    finding = _check(Name("absent.module", "name"), sources)
    assert finding == Finding("planted", "not checked", ("absent is not installed here",))


@pytest.mark.parametrize("limits", [{"until": (0, 31)}, {"since": (0, 33)}], ids=["older", "newer"])
def test_a_release_that_does_not_need_the_hook_is_not_checked(limits, sources):
    assert _check(Name("package.absent"), sources, **limits) == Finding("planted", "not needed")


def test_all_files_are_known_that_a_result_depends_on(sources, tmp_path):
    _check(Name("package.inner", "moved"), sources)
    assert tmp_path / "package" / "inner.py" in sources.looked_at
    assert tmp_path / "package" / "inner" / "__init__.py" in sources.looked_at


def test_names_are_unique_and_every_hook_is_described():
    assert [name for name, number in Counter(hook.name for hook in HOOKS).items() if number > 1] == []
    assert [hook.name for hook in HOOKS if not (hook.does and hook.without and hook.needs)] == []


def test_the_installed_libraries_fit():
    """Of those that this environment has; vLLM is not among them."""
    others = [
        hook for hook in HOOKS if all(isinstance(n, Name) and not n.module.startswith("vllm") for n in hook.needs)
    ]
    findings = check_hooks(others, Sources(installed_package), (0, 32))
    assert len(findings) > 5
    assert [finding for finding in findings if finding.state == "does not fit"] == []


def test_a_variable_leaves_hooks_out(monkeypatch):
    monkeypatch.setenv("VCLI_LEAVE_OUT", "spans, late imports")
    assert [hook.name for hook in HOOKS if not hook.applies] == ["late imports", "spans"]
    assert names_that_cannot_be_left_out({"spans", "port", "early", "import file"}) == ["early", "port"]


def test_the_internals_of_multiprocessing_that_are_used_are_declared():
    """But for names that `__all__` of their module has."""
    modules = {name: import_module(f"multiprocessing.{name}") for name in ("popen_spawn_posix", "popen_forkserver")}
    modules |= {name: import_module(f"multiprocessing.{name}") for name in ("spawn", "util", "resource_tracker")}
    declared = {part for need in FORKSERVER.needs if isinstance(need, Name) for part in need.path.split(".")}
    used = {
        node.attr
        for module in (forkserver, new_program)
        for node in ast.walk(ast.parse(Path(module.__file__).read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
        if node.attr not in modules[node.value.id].__all__
    }
    assert used - declared == set()
    assert len(FORKSERVER.needs) <= 5


def test_every_declared_hook_is_in_the_table():
    texts = [path.read_text() for path in (ROOT / "startup").rglob("*.py")]
    assert sum(text.count(": Final = Hook(") for text in texts) == len(HOOKS)


def test_hooks_are_declared_without_importing_what_they_are_about():
    code = (
        "import startup.vllm.launch.hooks, sys; print(*{'torch', 'transformers', 'vllm', 'uvicorn'} & {*sys.modules})"
    )
    assert find_spec("torch") is not None
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
