"""Runs the tests with the newest releases that the project's version ranges allow, and lists held-back ones.

`make test-newest` installs the releases and runs this file with that environment's interpreter; the arguments
go to pytest.
"""

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path
from typing import NamedTuple

import click
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
_NO_PIN = "-"


class Package(NamedTuple):
    """One dependency of the project."""

    name: str
    pinned: str
    """The version in constraints.txt; `_NO_PIN` if it is not there."""
    tried: str
    """The installed version."""
    newest: str
    """The newest release, even if a range excludes it."""
    held_by: tuple[str, ...] = ()
    """Packages whose version ranges exclude the newest release."""

    @property
    def note(self) -> str:
        """The last column of the table."""
        if self.held_by:
            return f"held back by {', '.join(self.held_by)}"
        if self.tried != self.newest:
            return "held back by the command line of `make test-newest`"
        return "not pinned" if self.pinned == _NO_PIN else "newer than the pin" if self.pinned != self.tried else ""


def main(words: list[str]) -> int:
    """Returns pytest's exit code."""
    packages = [*_read_packages(_newest_releases())]
    click.echo("\n".join([*format_table(packages), ""]))
    done = subprocess.run([sys.executable, "-m", "pytest", "-m", "not slow", *words], cwd=ROOT)
    outcome = "FAILED" if done.returncode else "passed"
    click.echo(f"newest: {outcome} with {', '.join(f'{package.name} {package.tried}' for package in packages)}")
    return done.returncode


def format_table(packages: Iterable[Package]) -> list[str]:
    """Lines with aligned columns."""
    rows = [("package", "pinned", "tried", "newest", ""), *((*package[:4], package.note) for package in packages)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def excludes(wanted: Requirement, name: str, release: str) -> bool:
    """Whether a requirement of an installed package is about `name` and excludes the release."""
    is_meant = canonicalize_name(wanted.name) == name and (wanted.marker is None or wanted.marker.evaluate())
    return is_meant and not wanted.specifier.contains(release, prereleases=True)


def _read_packages(newest: dict[str, str]) -> Iterable[Package]:
    """The installed dependencies of the project and of its extras, in alphabetical order."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = (project["dependencies"], *project["optional-dependencies"].values())
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    pins = {canonicalize_name(name): pin for name, pin in pins.items()}
    own = [Requirement(text) for group in groups for text in group]
    named = {canonicalize_name(requirement.name) for requirement in own}
    installed = {canonicalize_name(one.name): one for one in distributions()}
    wanted = {name: [Requirement(text) for text in one.requires or ()] for name, one in installed.items()}
    wanted[canonicalize_name(project["name"])] = own  # with those of the extras, which carry markers elsewhere
    for name in sorted(named & installed.keys()):
        tried = Version(installed[name].version).public  # 2.13.0 of 2.13.0+cpu
        release = Version(newest.get(name, tried)).public
        held_by = sorted(holder for holder in wanted if any(excludes(one, name, release) for one in wanted[holder]))
        yield Package(name, pins.get(name, _NO_PIN), tried, release, tuple(held_by))


def _newest_releases() -> dict[str, str]:
    """The newest releases of the installed packages that are older."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "list", "--outdated", "--format", "json"]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {canonicalize_name(package["name"]): package["latest_version"] for package in listed}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
