"""What the wheel holds."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_package_is_shipped_and_the_tests_are_not() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        packages = tomllib.load(file)["tool"]["setuptools"]["packages"]
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("vllm_cli", "startup", "server", "envs")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert set(packages) == folders
