"""`make size`: lines and files of each package or room against the table in `size.txt`; exit code 1 above it.

The column `change` has the lines added since the last commit on main.

`--lower` writes smaller numbers into the table. Larger ones are written by hand, with an entry in
docs/dev/decisions.md that says what the lines buy.
"""

import subprocess
import sys
from operator import gt
from pathlib import Path
from typing import Final, NamedTuple, Self

import click

from vllm_cli.terminal import align

TABLE: Final = Path(__file__).with_name("size.txt")


class Size(NamedTuple):
    """How large a package is."""

    lines: int
    files: int

    @classmethod
    def of(cls, root: Path, package: str) -> Self:
        """That of the files in git: Markdown in `docs`, Python elsewhere."""
        listed = subprocess.run(
            ["git", "ls-files", "-z", _pattern(package)], cwd=root, check=True, capture_output=True, text=True
        )
        paths = [root / name for name in listed.stdout.split("\0") if name]
        found = [path.read_bytes().count(b"\n") for path in paths if path.exists()]
        return cls(sum(found), len(found))

    @classmethod
    def at_main(cls, root: Path, package: str) -> Self | None:
        """The same at the last commit on main; None if this clone does not have that branch."""
        command = ["git", "grep", "-c", "", "main", "--", _pattern(package)]
        counted = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        found = [int(line.rpartition(":")[2]) for line in counted.stdout.splitlines()]
        return cls(sum(found), len(found)) if counted.returncode < 2 else None


def _pattern(package: str) -> str:
    return f"{package}/*.md" if package == "docs" else f"{package}/*.py"


def read_table(text: str) -> dict[str, Size]:
    """The largest allowed sizes by package."""
    rows = [line.split() for line in text.splitlines()[1:]]
    return {name: Size(int(lines), int(files)) for name, lines, files in rows}


def write_table(sizes: dict[str, Size]) -> str:
    """The text that `read_table` reads."""
    rows = [["package", "lines", "files"], *([name, *map(str, size)] for name, size in sizes.items())]
    return "\n".join(align(rows, are_figures=True)) + "\n"


@click.command()
@click.option("--lower", is_flag=True, help="Write smaller numbers into the table.")
def main(*, lower: bool) -> None:
    """Compares lines and files of each package with the table."""
    allowed = read_table(TABLE.read_text())
    sizes = {name: Size.of(TABLE.parents[1], name) for name in allowed}
    if lower:
        allowed = {name: Size(*map(min, size, allowed[name])) for name, size in sizes.items()}
        TABLE.write_text(write_table(allowed))
    rows = [["package", "lines", "allowed", "change", "files", "allowed"]]
    for name, size in sizes.items():
        before = Size.at_main(TABLE.parents[1], name)
        change = "?" if before is None else f"{size.lines - before.lines:+}"
        lines, files = zip(size, allowed[name], strict=True)
        rows.append([name, *map(str, lines), change, *map(str, files)])
    click.echo("\n".join(align(rows, are_figures=True)))
    if larger := [name for name, size in sizes.items() if any(map(gt, size, allowed[name]))]:
        click.echo(
            f"too large: {', '.join(larger)}. Remove lines, or raise {TABLE.name} and say in docs/dev/decisions.md why."
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
