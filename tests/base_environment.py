"""Makes a virtual environment with the base dependencies only, from what is installed for the tests."""

import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


class BaseEnvironment:
    """A virtual environment whose site-packages links to the base dependencies and to this checkout."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=120)
        self.python = folder / "bin" / "python"
        self.site_packages = site_packages = Path(
            sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        )
        for path in _top_level_paths(_closure(_base_requirements())):
            (site_packages / path.name).symlink_to(path)
        for name in ("vllm_cli", "startup", "server", "base", "envs"):
            (site_packages / name).symlink_to(ROOT / name)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`vllm-cli` with these words."""
        command = [self.python, "-P", "-m", "vllm_cli", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=200)


def _base_requirements() -> list[str]:
    """As pyproject.toml has them now; the installed metadata may be older."""
    requirements: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return requirements


def _closure(requirements: Iterable[str]) -> dict[str, Distribution]:
    """The distributions that these requirements bring, by name; extras of dependencies are left out."""
    found: dict[str, Distribution] = {}
    waiting = list(requirements)
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found[name] = distribution(requirement.name)
        waiting += found[name].requires or ()
    return found


def _top_level_paths(distributions: dict[str, Distribution]) -> Iterator[Path]:
    for found in distributions.values():
        tops = {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}
        yield from (Path(str(found.locate_file(top))) for top in tops)
