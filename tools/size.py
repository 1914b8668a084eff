"""`make size` fails if the project is larger than the limits in `size.txt`. Prints the lines of each room.

`--lower` writes what was reached into `size.txt`. Limits only fall: a commit that raises a limit fails, too.
"""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from vllm_cli.terminal import align

LIMITS: Final = Path(__file__).with_name("size.txt")
_PRODUCT: Final = ("vllm_cli", "router", "startup", "server", "base", "envs", "tools")
_ROOMS_WITHIN: Final = ("startup", "server")
"""Packages in which each folder is a room."""
_OTHER: Final = (".js", ".css", ".html", ".c", ".h", ".sh")


def measure(root: Path) -> tuple[dict[str, int], Counter[str]]:
    """The size of each kind of file in git, and the lines of Python in each room of the product."""
    sizes = {"python": 0, "page": 0, "other-languages": 0, "lines-of-tests": 0, "words-of-docs": 0}
    rooms: Counter[str] = Counter()
    for name in filter(None, _git(root, "ls-files", "-z").split("\0")):
        path = Path(name)
        kind = _kind(path)
        if kind is None or not (root / path).exists():
            continue
        text = (root / path).read_text(encoding="utf-8")
        sizes[kind] += len(text.split()) if kind == "words-of-docs" else text.count("\n")
        if kind == "python":
            rooms["/".join(path.parts[: 2 if path.parts[0] in _ROOMS_WITHIN else 1])] += text.count("\n")
    return sizes, rooms


def _kind(path: Path) -> str | None:
    match path.parts[0], path.suffix:
        case "docs", ".md":
            return "words-of-docs"
        case "tests", ".py" | ".txt" | ".jsonl":
            return "lines-of-tests"
        case top, ".py" if top in _PRODUCT:
            return "python"
        case top, suffix if top in _PRODUCT and suffix in _OTHER:
            return "page" if "status_page" in path.parts else "other-languages"
        case _:
            return None


def read_limits(text: str) -> dict[str, int]:
    """Kind of file -> its limit. Empty if the text has another form, as in commits before the limits."""
    rows = [line.split() for line in text.splitlines()]
    is_table = all(len(row) == 2 and row[1].isdecimal() for row in rows)
    return {kind: int(limit) for kind, limit in rows} if is_table else {}


def raised(root: Path, limits: str) -> Iterator[str]:
    """Problems: a commit that raises a limit, or a limit that is higher than in the last commit."""
    commits = _git(root, "log", "--format=%h", "--", limits).split()
    texts = [(root / limits).read_text(), *(_git(root, "show", f"{commit}:{limits}") for commit in commits)]
    names = ["The working tree", *commits]
    for name, after, before in zip(names, map(read_limits, texts), map(read_limits, texts[1:]), strict=False):
        for kind in before.keys() & after.keys():
            if after[kind] > before[kind]:
                yield f"{name} raises the limit of {kind} from {before[kind]} to {after[kind]}."


def _git(root: Path, *words: str) -> str:
    """The output of git. Empty if the clone lacks the history."""
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False).stdout


@click.command()
@click.option("--lower", is_flag=True, help="Write smaller limits.")
def main(*, lower: bool) -> None:
    """Compares the size of the project with its limits."""
    root = LIMITS.parents[1]
    limits = read_limits(LIMITS.read_text())
    sizes, rooms = measure(root)
    if lower:
        limits = {kind: min(limit, sizes[kind]) for kind, limit in limits.items()}
        LIMITS.write_text("".join(f"{kind} {limit}\n" for kind, limit in limits.items()))
    click.echo("\n".join(align([[room, str(lines)] for room, lines in rooms.items()], are_figures=True)))
    rows = [[kind, f"{sizes[kind]} of {limit}"] for kind, limit in limits.items()]
    click.echo("\n".join(align(rows, are_figures=True)))
    problems = [
        f"too large: {kind} has {sizes[kind]}, at most {limit}. Remove something else."
        for kind, limit in limits.items()
        if sizes[kind] > limit
    ]
    problems += raised(root, str(LIMITS.relative_to(root)))
    for problem in problems:
        click.echo(problem)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
