"""`make size` counts the tokens of the product's code, and fails above the ceiling in `size.txt`.

Tokens are names, operators, numbers and strings; docstrings, comments and blank lines cost nothing, so a line
that saves a second reading is free. Tools, tests, docs and words of data files are printed without a limit.
A commit may raise the ceiling if its message says why.
"""

import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click

from vllm_cli.terminal import align

CEILING: Final = Path(__file__).with_name("size.txt")
_PRODUCT: Final = ("vllm_cli", "router", "startup", "server", "base", "envs")
_ROOMS_WITHIN: Final = ("startup", "server")
"""Packages in which each folder is a room."""
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

    rooms: dict[str, CodeSize] = field(default_factory=dict)
    """The rooms of the product."""
    others: dict[str, CodeSize] = field(default_factory=lambda: {"tools": CodeSize(), "tests": CodeSize()})
    """Code without a limit."""
    printed: dict[str, int] = field(default_factory=dict)
    """Kinds of files without a limit -> their lines or words."""

    @property
    def product(self) -> CodeSize:
        """All rooms."""
        total = CodeSize()
        for room in self.rooms.values():
            total.add(room)
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
    for name in filter(None, _git(root, "ls-files", "-z").split("\0")):
        path = Path(name)
        if not (root / path).is_file():
            continue
        top = path.parts[0]
        if path.suffix == ".py" and top in _PRODUCT:
            room = "/".join(path.parts[: 2 if top in _ROOMS_WITHIN else 1])
            project.rooms.setdefault(room, CodeSize()).add(measure_code(root / path))
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


def unexplained(root: Path, ceiling: str) -> Iterator[str]:
    """Commits that raise the ceiling, and whose message has only a subject."""
    commits = _git(root, "log", "--format=%h", "--", ceiling).split()
    values = [_read_ceiling(_git(root, "show", f"{commit}:{ceiling}")) for commit in commits]
    for commit, after, before in zip(commits, values, values[1:], strict=False):
        is_raised = after is not None and before is not None and after > before
        if is_raised and not _git(root, "log", "-1", "--format=%b", commit).strip():
            yield f"{commit} raises the ceiling from {before} to {after}, and its message does not say why."


def _read_ceiling(text: str) -> int | None:
    """The ceiling; none if the text has another form, as in commits before it."""
    words = text.split()
    return int(words[1]) if len(words) == 2 and words[0] == "tokens" and words[1].isdecimal() else None


def _git(root: Path, *arguments: str) -> str:
    """The output of git. Empty if the clone lacks the history."""
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False).stdout


@click.command()
def main() -> None:
    """Compares the size of the project with its ceiling."""
    root = CEILING.parents[1]
    ceiling = _read_ceiling(CEILING.read_text())
    if ceiling is None:
        raise click.ClickException(f"{CEILING.name} must be one line of the form: tokens 460000")
    project = measure(root)
    rows = [[name, str(room.tokens), f"{room.density:.1f}"] for name, room in project.rooms.items()]
    click.echo("\n".join(align([["room", "tokens", "a line"], *rows], are_figures=True)))
    product = project.product
    click.echo(f"product: {product.tokens} tokens of {ceiling}, {_density_text('product', product)}")
    for kind, size in project.others.items():
        click.echo(f"{kind}: {size.tokens} tokens, {_density_text(kind, size)}")
    for kind, count in sorted(project.printed.items()):
        click.echo(f"{kind}: {count}")
    problems = list(unexplained(root, str(CEILING.relative_to(root))))
    if product.tokens > ceiling:
        problems.append(
            f"The product has {product.tokens} tokens, at most {ceiling}. Remove what nobody needs any more, or raise"
            f" the ceiling in tools/{CEILING.name} in a commit whose message says why."
        )
    for problem in problems:
        click.echo(problem)
    sys.exit(1 if problems else 0)


def _density_text(kind: str, size: CodeSize) -> str:
    text = f"{size.density:.2f} a line"
    return f"{text} (dense: we aim at {_DENSEST[kind]})" if size.density > _DENSEST[kind] else text


if __name__ == "__main__":
    main()
