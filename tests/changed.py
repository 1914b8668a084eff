"""`make test CHANGED=1`: prints the test files that the changes since the branch left main can reach.

A file uses the modules that it imports, inside of functions too, those that it names in a string (tables of
commands, `-m vllm_cli`), and the fixtures that it names. All tests are reached by a change of any other file
(Makefile, conftest.py, data) and of a module that nothing uses in these ways.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from typing import Final

PACKAGES: Final = ("vllm_cli", "startup", "server", "envs", "tests", "tools")
READ_ALL_FILES: Final = ("tests/test_docs.py", "tests/test_regex_costs.py", "tests/server/test_scanners.py")
"""Tests of pages, or of the product's sources; they always run."""
ROOT: Final = Path(__file__).parents[1]
_NAMED: Final = re.compile(r'"([\w.]+)[":]|from ([\w.]+) import')
_PROGRAM: Final = re.compile(r'"-m", "vllm_cli"')

Uses = dict[str, set[str]]
"""The modules and fixtures that each module and each fixture, as `folder::name`, uses."""


def main() -> None:
    try:
        changes = find_changes(ROOT)
    except subprocess.CalledProcessError as error:
        sys.exit(f"CHANGED=1 needs a git checkout with a branch main: {error.stderr}")
    print(*select_tests(changes, read_uses(ROOT)))


def find_changes(root: Path, branch: str = "main") -> set[str]:
    """Files that are new or were changed, committed or not, since this branch left `branch`.

    Without removed modules: what imported them has changed as well.
    """

    def git(*words: str) -> set[str]:
        return set(subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout.split())

    (base,) = git("merge-base", branch, "HEAD")
    changes = git("diff", "--name-only", "--no-renames", base) | git("ls-files", "--others", "--exclude-standard")
    return {path for path in changes if (root / path).exists() or not path.endswith(".py")}


def select_tests(changes: Iterable[str], uses: Uses) -> list[str]:
    """The arguments for pytest: files, or `tests`."""
    selected = {*READ_ALL_FILES}
    for path in changes:
        if path.startswith("tools/") or path.endswith(".md"):
            continue
        users = _find_users(_module(Path(path)), uses) if path.endswith(".py") else set()
        tests = {f"{user.replace('.', '/')}.py" for user in users if re.match(r"tests\.(.*\.)?test_\w+$", user)}
        if not tests or path.endswith("conftest.py"):
            return ["tests"]
        selected |= tests
    return sorted(selected)


def _find_users(changed: str, uses: Uses) -> set[str]:
    """What uses the module, directly or not, and the module itself."""
    users: set[str] = set()
    new = {changed} & uses.keys()
    while new:
        users |= new
        new = {user for user, used in uses.items() if not used.isdisjoint(new)} - users
    return users


def read_uses(root: Path) -> Uses:
    """Of all modules below `root`, which is on sys.path."""
    import grimp

    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    uses = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    conftests = [root / "conftest.py", *(root / "tests").rglob("conftest.py")]
    for path in conftests:
        for name, used in _read_fixtures(path, graph.modules):
            uses.setdefault(name, set()).update(used)
    for path in (path for package in PACKAGES for path in (root / package).rglob("*.py")):
        module = _module(path.relative_to(root))
        text = path.read_text()
        uses[module] |= _find_named(text, module.rpartition(".")[0], graph.modules)
        if path.name.startswith("test_"):
            uses[module] |= _find_fixtures(path, text) & uses.keys()
    return uses


def _read_fixtures(conftest: Path, modules: Set[str]) -> Iterator[tuple[str, set[str]]]:
    """The fixtures of one file; one of all tests is called `folder::`."""
    text = conftest.read_text()
    body = ast.parse(text).body
    imports = [node for node in body if isinstance(node, ast.ImportFrom)]
    origins = {alias.asname or alias.name: f"{node.module}" for node in imports for alias in node.names}
    for node in body:
        if isinstance(node, ast.FunctionDef) and "fixture" in "".join(how := [*map(ast.unparse, node.decorator_list)]):
            source = ast.get_source_segment(text, node) or ""
            used = {origins[word] for word in re.findall(r"\w+", source) if word in origins}
            name = "" if "autouse" in how[0] else node.name
            used |= _find_named(source, "tests", modules) | _find_fixtures(conftest, source)
            yield f"{conftest.parent}::{name}", used


def _find_fixtures(path: Path, text: str) -> set[str]:
    """The fixtures that a text may name."""
    return {f"{folder}::{word}" for folder in path.parents for word in {"", *re.findall(r"\w+", text)}}


def _find_named(text: str, package: str, modules: Set[str]) -> set[str]:
    """The modules that a text names, also below its own package."""
    names = {name for found in _NAMED.findall(text) for name in found}
    program = {"vllm_cli.__main__"} if _PROGRAM.search(text) else set()
    return (names | {f"{package}.{name}" for name in names if "." in name}) & modules | program


def _module(path: Path) -> str:
    """`server.engine.core` of `server/engine/core.py`, `server.engine` of its `__init__.py`."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


if __name__ == "__main__":
    main()
