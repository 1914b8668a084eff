"""`make size` prints what a reader must know, and fails above the limits in `size.toml`.

- The closure of a start of vLLM: the tokens of all modules that it imports, also in functions. Tokens are
  names, operators, numbers and strings. Docstrings, comments and blank lines cost nothing, so a line that
  saves a second reading is free.
- The face of a room: how many names of its modules other rooms import.

All other sizes are printed without a limit. A commit may raise a limit if its message says why.
"""

import ast
import subprocess
import sys
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click

from vllm_cli.terminal import align

LIMITS: Final = Path(__file__).with_name("size.toml")
_START: Final = "startup.vllm.launch.start"
"""The module from which the closure begins."""
_LARGEST_FACE: Final = 10
"""The limit of a room's face that `size.toml` does not name."""
_PRODUCT: Final = ("vllm_cli", "router", "startup", "server", "base", "envs")
_DATA: Final = (".txt", ".yaml", ".toml", ".json", ".jsonl")
_OTHER: Final = (".js", ".css", ".html", ".c", ".h", ".sh")
_DENSEST: Final = {"product": 8.3, "tools": 8.3, "tests": 8.8}
"""Tokens a line that we aim at. More is printed as dense, and fails nothing."""
_LAYOUT: Final = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
)
_BEFORE_STATEMENT: Final = (tokenize.INDENT, tokenize.NEWLINE, tokenize.DEDENT, tokenize.ENCODING)


@dataclass
class CodeSize:
    """Tokens of code, and the lines that have at least one."""

    tokens: int = 0
    lines: int = 0

    def add(self, other: "CodeSize") -> None:
        """Adds the size of another file."""
        self.tokens += other.tokens
        self.lines += other.lines

    @property
    def density(self) -> float:
        """Tokens a line."""
        return self.tokens / max(1, self.lines)


@dataclass
class ProjectSize:
    """What git tracks, measured."""

    modules: dict[str, CodeSize] = field(default_factory=dict)
    """The modules of the product."""
    others: dict[str, CodeSize] = field(default_factory=lambda: {"tools": CodeSize(), "tests": CodeSize()})
    """Code without a limit."""
    printed: dict[str, int] = field(default_factory=dict)
    """Kinds of files without a limit -> their lines or words."""

    def rooms(self) -> dict[str, CodeSize]:
        """The rooms of the product."""
        rooms: dict[str, CodeSize] = {}
        for module, size in self.modules.items():
            rooms.setdefault(_room_of(module), CodeSize()).add(size)
        return rooms

    def total(self, modules: Iterable[str]) -> CodeSize:
        """The size of these modules together."""
        total = CodeSize()
        for module in modules:
            total.add(self.modules[module])
        return total


def measure_code(path: Path) -> CodeSize:
    """The size of a Python file."""
    size, lines, before = CodeSize(), set[int](), tokenize.ENCODING
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type in (tokenize.COMMENT, tokenize.NL):
                continue
            is_docstring = token.type == tokenize.STRING and before in _BEFORE_STATEMENT
            before = token.type
            if token.type not in _LAYOUT and not is_docstring:
                size.tokens += 1
                lines.update(range(token.start[0], token.end[0] + 1))
    size.lines = len(lines)
    return size


def measure(root: Path) -> ProjectSize:
    """Measures each file in git."""
    project = ProjectSize()
    for path in _tracked(root):
        top = path.parts[0]
        if path.suffix == ".py" and top in _PRODUCT:
            project.modules[_module_of(path)] = measure_code(root / path)
        elif path.suffix == ".py" and top in project.others:
            project.others[top].add(measure_code(root / path))
        elif (kind := _printed_kind(path)) is not None:
            text = (root / path).read_text(encoding="utf-8")
            count = text.count("\n") if kind.startswith("lines") else len(text.split())
            project.printed[kind] = project.printed.get(kind, 0) + count
    return project


def _printed_kind(path: Path) -> str | None:
    match path.parts[0], path.suffix:
        case _, ".md":
            return "words of docs"
        case top, suffix if top in (*_PRODUCT, "tools") and suffix in _DATA:
            return "words of data"
        case top, suffix if top in (*_PRODUCT, "tools") and suffix in _OTHER:
            return "lines of the page" if "status_page" in path.parts else "lines in other languages"
        case _:
            return None


@dataclass
class ImportedNames:
    """The imports inside the product."""

    imports: dict[str, set[tuple[str, str]]]
    """Module -> the modules that it imports, each with the imported name. Empty: the module itself."""

    @classmethod
    def read(cls, root: Path) -> "ImportedNames":
        """Reads each module of the product that git tracks. Imports for type checkers do not count."""
        files = {
            _module_of(path): path for path in _tracked(root) if path.suffix == ".py" and path.parts[0] in _PRODUCT
        }
        imports = {}
        for module, path in files.items():
            found = _imports_in(ast.parse((root / path).read_text(encoding="utf-8")))
            with_packages = (
                (f"{name}.{part}", "") if f"{name}.{part}" in files else (name, part) for name, part in found
            )
            imports[module] = {(name, part) for name, part in with_packages if name in files}
        return cls(imports)

    def closure(self) -> set[str]:
        """The modules that a start of vLLM imports, with their packages."""
        seen, waiting = set[str](), [_START] if _START in self.imports else []
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                package = module.rpartition(".")[0]
                waiting += [
                    *(name for name, _ in self.imports[module]),
                    *([package] if package in self.imports else ()),
                ]
        return seen

    def faces(self) -> dict[str, int]:
        """Room -> how many of its names other rooms import."""
        outside = {
            (_room_of(name), name, part)
            for module, found in self.imports.items()
            for name, part in found
            if _room_of(name) != _room_of(module)
        }
        return dict(Counter(room for room, _, _ in outside))


def _imports_in(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yields module and name of each import, also of those in functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from ((node.module, alias.name) for alias in node.names)
        else:
            yield from _imports_in(node)


def _module_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _room_of(module: str) -> str:
    """A package, or the folder of a package, to which a module belongs."""
    parts = module.split(".")
    return ".".join(parts[:2]) if len(parts) > 2 else parts[0]


def _tracked(root: Path) -> list[Path]:
    names = filter(None, _git(root, "ls-files", "-z").split("\0"))
    return [path for path in map(Path, names) if (root / path).is_file()]


Limits = Mapping[str, int]
"""`closure` or the name of a room -> the limit."""


def _read_limits(text: str) -> Limits | None:
    """The limits. None if the text has another form, as in commits before it."""
    try:
        read = tomllib.loads(text)
        return {"closure": int(read["closure"]), **read["faces"]}
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError):
        return None


def _exceeded(num_tokens: int, faces: Mapping[str, int], limits: Limits) -> Iterator[str]:
    """Yields a sentence for each limit that the tokens of the closure or a face exceed."""
    advice = f"Remove what nobody needs, or raise the limit in tools/{LIMITS.name} in a commit whose message says why."
    if num_tokens > limits["closure"]:
        yield f"A start of vLLM imports {num_tokens} tokens, at most {limits['closure']}. {advice}"
    for room, num_names in faces.items():
        limit = limits.get(room, _LARGEST_FACE)
        if num_names > limit:
            yield f"Other rooms import {num_names} names of {room}, at most {limit}. {advice}"


def unexplained(root: Path, file: str) -> Iterator[str]:
    """Commits that raise a limit, and whose message has only a subject."""
    commits = _git(root, "log", "--format=%h", "--", file).split()
    values = [_read_limits(_git(root, "show", f"{commit}:{file}")) for commit in commits]
    for commit, after, before in zip(commits, values, values[1:], strict=False):
        if after is None or before is None or _git(root, "log", "-1", "--format=%b", commit).strip():
            continue
        for name, limit in after.items():
            if limit > before.get(name, limit):
                raised = f"raises the limit of {name} from {before[name]} to {limit}"
                yield f"{commit} {raised}, and its message does not say why."


def _git(root: Path, *arguments: str) -> str:
    """The output of git. Empty if the clone lacks the history."""
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False).stdout


@click.command()
def main() -> None:
    """Compares closure and faces with their limits."""
    root = LIMITS.parents[1]
    limits = _read_limits(LIMITS.read_text())
    if limits is None:
        raise click.ClickException(f"{LIMITS.name} must have a number `closure` and a table `faces`")
    project, names = measure(root), ImportedNames.read(root)
    closure, faces, product = names.closure(), names.faces(), project.total(project.modules)
    rows = []
    for room, size in project.rooms().items():
        in_closure = project.total(module for module in closure if _room_of(module) == room).tokens
        limit = limits.get(room, _LARGEST_FACE)
        rows.append(
            [room, str(size.tokens), f"{size.density:.1f}", str(in_closure), str(faces.get(room, 0)), str(limit)]
        )
    head = ["room", "tokens", "a line", "in closure", "names of face", "at most"]
    click.echo("\n".join(align([head, *rows], are_figures=True)))
    num_tokens = project.total(closure).tokens
    click.echo(f"closure of a start of vLLM: {num_tokens} tokens of {limits['closure']}, {len(closure)} modules")
    click.echo(f"product: {product.tokens} tokens, {_density_text('product', product)}")
    for kind, size in project.others.items():
        click.echo(f"{kind}: {size.tokens} tokens, {_density_text(kind, size)}")
    for kind, count in sorted(project.printed.items()):
        click.echo(f"{kind}: {count}")
    problems = [*unexplained(root, str(LIMITS.relative_to(root))), *_exceeded(num_tokens, faces, limits)]
    for problem in problems:
        click.echo(problem)
    sys.exit(1 if problems else 0)


def _density_text(kind: str, size: CodeSize) -> str:
    text = f"{size.density:.2f} a line"
    return f"{text} (dense: we aim at {_DENSEST[kind]})" if size.density > _DENSEST[kind] else text


if __name__ == "__main__":
    main()
