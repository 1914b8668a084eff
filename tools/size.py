"""`make size` fails if a room (a package or folder) has more lines, code or files than in `size.txt`.

A line of code has more than a docstring or a comment. `--lower` writes smaller numbers into the table.

A room may grow if another room shrinks. A commit that raises the sum of the product's rooms needs a line
`Grows: ROOM +N, because …` in its message. The line is printed until the next release.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from operator import gt
from pathlib import Path
from typing import Final, NamedTuple, Self

import click

from vllm_cli.terminal import align

TABLE: Final = Path(__file__).with_name("size.txt")
_NO_PRODUCT: Final = ("tests", "docs")
_GROWS: Final = re.compile(r"^Grows: (\S+) \+(\d+), because .+", re.MULTILINE)


class Size(NamedTuple):
    """The size of a room."""

    lines: int
    code: int
    files: int

    @classmethod
    def of(cls, root: Path, room: str) -> Self:
        """The size of a room's files in git. Markdown files count in `docs`, Python files in other rooms."""
        pattern = f"{room}/*.md" if room == "docs" else f"{room}/*.py"
        paths = [root / name for name in _git(root, "ls-files", "-z", pattern).split("\0") if name]
        texts = [path.read_text(encoding="utf-8") for path in paths if path.exists()]
        code = 0 if room == "docs" else sum(map(_count_code, texts))
        return cls(sum(text.count("\n") for text in texts), code, len(texts))


def _count_code(text: str) -> int:
    strings = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Expr) and _is_text(node.value))
    docs = {line for node in strings for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    lines = enumerate(map(str.strip, text.splitlines()), start=1)
    return sum(bool(line) and not line.startswith("#") and number not in docs for number, line in lines)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def read_table(text: str) -> dict[str, Size]:
    """Room -> its largest allowed size. Empty if the table has another form."""
    rows = [line.split() for line in text.splitlines()]
    if not rows or rows[0][1:] != [*Size._fields]:
        return {}
    return {name: Size(*map(int, numbers)) for name, *numbers in rows[1:]}


def write_table(sizes: dict[str, Size]) -> str:
    """The text of the table, as `read_table` reads it."""
    rows = [["room", *Size._fields], *([name, *map(str, size)] for name, size in sizes.items())]
    return "\n".join(align(rows, are_figures=True)) + "\n"


def total(sizes: dict[str, Size]) -> Size:
    """The sum of the product's rooms, including tools."""
    rooms = [size for name, size in sizes.items() if name not in _NO_PRODUCT]
    return Size(sum(each.lines for each in rooms), sum(each.code for each in rooms), sum(each.files for each in rooms))


class Growth(NamedTuple):
    """A commit since the last release that has changed the table."""

    commit: str
    lines: int
    """The lines by which the sum of the product has grown."""
    reasons: list[str]
    """The lines `Grows: …` of the commit's message."""

    @property
    def problem(self) -> str | None:
        """An error if the message does not explain the growth. Otherwise None."""
        named = sum(int(lines) for _, lines in _GROWS.findall("\n".join(self.reasons)))
        if self.lines <= named:
            return None
        return (
            f"{self.commit[:8]} raises the sum by {self.lines} lines, and its message names {named} (Grows: ROOM +N, …)"
        )


def growth(root: Path, table: str) -> Iterator[Growth]:
    """Commits that have changed the table, the newest first."""
    release = _git(root, "log", "-1", "--format=%H", "-G", r"^## \[[0-9]", "--", "CHANGELOG.md").strip()
    commits = _git(root, "log", "--format=%H", *([f"{release}.."] if release else []), "--", table)
    for commit in commits.split():
        before, after = (read_table(_git(root, "show", f"{place}:{table}")) for place in (f"{commit}^", commit))
        lines = total(after).lines - total(before).lines if before and after else 0
        message = _git(root, "show", "-s", "--format=%B", commit)
        yield Growth(commit, lines, [line for line in message.splitlines() if _GROWS.match(line)])


def _git(root: Path, *words: str) -> str:
    """The output of git. Empty if the clone lacks the history."""
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False).stdout


@click.command()
@click.option("--lower", is_flag=True, help="Write smaller numbers into the table.")
def main(*, lower: bool) -> None:
    """Compares lines and files of each room with the table."""
    root, table = TABLE.parents[1], str(TABLE.relative_to(TABLE.parents[1]))
    allowed = read_table(TABLE.read_text())
    sizes = {name: Size.of(root, name) for name in allowed}
    if lower:
        allowed = {name: Size(*map(min, size, allowed[name])) for name, size in sizes.items()}
        TABLE.write_text(write_table(allowed))
    rows = [["room", *(f"{field} of allowed" for field in Size._fields)]]
    for name, size in [*sizes.items(), ("product", total(sizes))]:
        of = allowed.get(name) or total(allowed)
        rows.append([name, *(f"{now} of {most}" for now, most in zip(size, of, strict=True))])
    click.echo("\n".join(align(rows, are_figures=True)))
    grown = list(growth(root, table))
    for each in grown:
        for reason in each.reasons:
            click.echo(reason)
    larger = [name for name, size in sizes.items() if any(map(gt, size, allowed[name]))]
    problems = [each.problem for each in grown if each.problem is not None]
    if larger:
        problems.append(
            f"too large: {', '.join(larger)}. Remove lines there; raise a row only as another one is lowered."
        )
    for problem in problems:
        click.echo(problem)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
