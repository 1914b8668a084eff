"""Reads the sources of installed or unpacked packages without importing them, and checks hooks with them."""

import ast
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import lru_cache, partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias, TypeGuard

from startup.hooks.hook import Hook, Name, Need, Reads, Release, Text

PackageFinder: TypeAlias = Callable[[str], Path | None]
"""The folder of a top-level package, or the file of a top-level module; None without one."""

Definition: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign | ast.alias

_MAX_REEXPORTS: Final = 5

_STATEMENT: Final = re.compile(r"^(?!else\b|elif\b|except\b|finally\b)[\w@'\"(\[{]", re.MULTILINE)
"""The begin of a statement or decorator at the top level of a module."""

HookState: TypeAlias = Literal["applies", "does not fit", "not needed", "not checked"]
"""`not needed`: by this release of vLLM. `not checked`: packages are missing."""


class Sources:
    """The source files of some packages; each file is read once."""

    def __init__(self, find_package: PackageFinder) -> None:
        self.find_package = lru_cache(find_package)
        self._split = lru_cache(_split)
        self._parse = lru_cache(_parse)
        self._texts: dict[str, str] = {}
        self.looked_at: dict[Path, None] = {}
        """All files that were read or not found, in order."""

    def text(self, module: str) -> str | None:
        """The module's source; None without one, as for a missing or compiled module."""
        if module not in self._texts:
            path = self._path(module)
            if path is None:
                return None
            self._texts[module] = path.read_text(encoding="utf-8", errors="replace")
        return self._texts[module]

    def find(self, module: str, path: str, *, depth: int = _MAX_REEXPORTS) -> Definition | None:
        """The definition of a name in a module, or in the module that it is imported from."""
        text = self.text(module) or ""
        for parse in (partial(self._parse_statements_with, path.partition(".")[0]), self._parse):
            tree = parse(text)
            found = _resolve(tree, path)
            if isinstance(found, ast.alias) and depth:
                source = _imported_from(tree, found, module, is_package=self.is_package(module))
                return (self.find(source, found.name, depth=depth - 1) if source else None) or found
            if found is not None:
                return found
        return None

    def _parse_statements_with(self, name: str, text: str) -> ast.Module:
        """The top-level statements that contain a name: parsing whole files of torch takes a second.

        A definition at the left margin of a text in quotes is taken for one of the module.
        """
        parts = filter(re.compile(rf"\b{name}\b").search, self._split(text))
        return ast.Module(body=[statement for part in parts for statement in self._parse(part).body], type_ignores=[])

    def is_package(self, module: str) -> bool:
        """Whether the module is a folder with an `__init__.py`."""
        path = self._path(module)
        return path is not None and path.name == "__init__.py"

    def _path(self, module: str) -> Path | None:
        root, *rest = module.split(".")
        package = self.find_package(root)
        if package is None:
            return None
        candidates = (package.joinpath(*rest, "__init__.py"), package.joinpath(*rest).with_suffix(".py"))
        for path in candidates if package.is_dir() else (package,):
            self.looked_at[path] = None
            if path.is_file():
                return path
        return None


def installed_package(name: str) -> Path | None:
    """Where this interpreter would import the package from."""
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.has_location or spec.origin is None:
        return None
    return Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)


def packages_beside(folder: Path) -> PackageFinder:
    """Finds packages in a folder, such as an unpacked wheel; modules of Python are this interpreter's."""

    def find(name: str) -> Path | None:
        if name in sys.stdlib_module_names:
            return installed_package(name)
        return next((path for path in (folder / name, folder / f"{name}.py") if path.exists()), None)

    return find


def has_pattern(text: str, pattern: str) -> bool:
    """Whether the pattern occurs; `.` matches line breaks, `^` the begin of a line."""
    return re.search(pattern, text, re.DOTALL | re.MULTILINE) is not None


def attributes_read(function: ast.AST, argument: str) -> set[str]:
    """The attributes that a function's code reads of one of its arguments."""
    return {
        node.attr
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == argument
    }


def _split(text: str) -> list[str]:
    """The statements at the top level of a module."""
    begins = [*(match.start() for match in _STATEMENT.finditer(text)), len(text)]
    return [text[begin:end] for begin, end in pairwise(begins)]


def _parse(text: str) -> ast.Module:
    """Empty for a part of a text in quotes, and for what was written for a newer Python than this one."""
    with suppress(SyntaxError):
        return ast.parse(text)
    return ast.Module(body=[], type_ignores=[])


def _resolve(tree: ast.Module, path: str) -> Definition | None:
    """The definition of a name in a module, given with the names of its classes."""
    first, *others = path.split(".")
    found = _defined_in(tree, first)
    for name in others:
        found = _defined_in(found, name) if found is not None else None
    return found


def _defined_in(owner: ast.AST, name: str) -> Definition | None:
    """The last definition of the name, as for overloads; attributes of a class may be set in its methods."""
    found = [statement for statement in _statements(owner) if name in _names_of(statement)]
    if found:
        return _as_definition(found[-1], name)
    if isinstance(owner, ast.ClassDef):
        return next((node for node in ast.walk(owner) if _is_set_on_self(node, name)), None)
    return None


def _statements(owner: ast.AST) -> Iterator[ast.stmt]:
    """The statements of a module or class, including those under `if`, `try` and `with`."""
    for statement in getattr(owner, "body", ()):
        yield statement
        if isinstance(statement, ast.If | ast.Try | ast.With):
            for part in (statement, *getattr(statement, "handlers", ())):
                yield from _statements(part)
            for block in (getattr(statement, "orelse", ()), getattr(statement, "finalbody", ())):
                yield from _statements(ast.Module(body=list(block), type_ignores=[]))


def _names_of(statement: ast.stmt) -> Iterable[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return (statement.name,)
    if isinstance(statement, ast.Assign):
        return [node.id for target in statement.targets for node in ast.walk(target) if isinstance(node, ast.Name)]
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return (statement.target.id,)
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name for alias in statement.names]
    return ()


def _as_definition(statement: ast.stmt, name: str) -> Definition:
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return next(alias for alias in statement.names if name == (alias.asname or alias.name))
    assert isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign)
    return statement


def _is_set_on_self(node: ast.AST, name: str) -> TypeGuard[ast.Assign | ast.AnnAssign]:
    """Whether the node is an assignment to `self.NAME`."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return any(isinstance(target, ast.Attribute) and ast.unparse(target) == f"self.{name}" for target in targets)


def _imported_from(tree: ast.Module, alias: ast.alias, module: str, *, is_package: bool) -> str | None:
    """The module of `from MODULE import ALIAS`, with relative names resolved; None for `import ALIAS`."""
    for statement in ast.walk(tree):
        if isinstance(statement, ast.ImportFrom) and alias in statement.names:
            if not statement.level:
                return statement.module
            parents = module.split(".")
            parents = parents[: len(parents) - statement.level + is_package]
            return ".".join([*parents, *filter(None, [statement.module])])
    return None


class Finding(NamedTuple):
    """The result for one hook."""

    hook: str
    state: HookState
    reasons: tuple[str, ...] = ()
    """What is missing or changed, or which packages are missing."""


def check_hooks(hooks: Iterable[Hook], sources: Sources, release: Release) -> list[Finding]:
    """One finding per hook, in order."""
    return [_check(hook, sources, release) for hook in hooks]


def _check(hook: Hook, sources: Sources, release: Release) -> Finding:
    if not hook.is_for(release):
        return Finding(hook.name, "not needed")
    absent = {root for need in hook.needs if sources.find_package(root := _root(need)) is None}
    present = [need for need in hook.needs if _root(need) not in absent]
    reasons = tuple(reason for need in present for reason in _reasons(need, sources))
    if reasons:
        return Finding(hook.name, "does not fit", reasons)
    if absent:
        return Finding(hook.name, "not checked", tuple(f"{root} is not installed here" for root in sorted(absent)))
    return Finding(hook.name, "applies")


def _root(need: Need) -> str:
    """The package that the need is about."""
    if isinstance(need, Text):
        return need.modules[0].partition(".")[0]
    name = need.function if isinstance(need, Reads) else need
    return name.module.partition(".")[0]


def _reasons(need: Need, sources: Sources) -> Iterator[str]:
    """Why the need is not met; nothing if it is."""
    if isinstance(need, Text):
        texts = [text for module in need.modules if (text := sources.text(module)) is not None]
        if not any(has_pattern(text, need.pattern) for text in texts):
            yield f"{' or '.join(need.modules)}: {need.meaning} is not found"
        return
    name = need if isinstance(need, Name) else need.function
    if sources.text(name.module) is None:
        yield f"module {name.module} is missing"
        return
    definition = sources.find(name.module, name.path) if name.path else None
    if name.path and definition is None:
        yield f"{name.module} has no {name.path}"
    elif isinstance(need, Reads):
        if unknown := attributes_read(definition, need.argument).difference(need.attributes):  # type: ignore[arg-type]
            yield f"{name.module}.{name.path} reads {', '.join(sorted(unknown))} of {need.argument} too"
    elif name.parameters is not None and isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef):
        yield from _differences(name, definition)


def _differences(name: Name, function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """Parameters that the hook passes and the function does not take, or needs and does not get."""
    signature = function.args
    positional = [*signature.posonlyargs, *signature.args]
    if "." in name.path and positional and positional[0].arg in ("self", "cls"):
        positional = positional[1:]
    optional = {arg.arg for arg in positional[len(positional) - len(signature.defaults) :]}
    optional |= {arg.arg for arg, value in zip(signature.kwonlyargs, signature.kw_defaults, strict=True) if value}
    taken = [arg.arg for arg in (*positional, *signature.kwonlyargs)]
    passed = name.parameters or ()
    unknown = [] if signature.kwarg else [parameter for parameter in passed if parameter not in taken]
    needed = [parameter for parameter in taken if parameter not in passed and parameter not in optional]
    if unknown:
        yield f"{name.module}.{name.path} takes no {', '.join(unknown)}"
    if needed:
        yield f"{name.module}.{name.path} needs {', '.join(needed)}"
