"""The table of `make test-newest`: installed and newest releases, and what holds a release back."""

import importlib.util
from pathlib import Path

import pytest
from packaging.requirements import Requirement

SCRIPT = Path(__file__).parent.parent / ".ci" / "newest.py"


@pytest.fixture(scope="module")
def newest():
    spec = importlib.util.spec_from_file_location("newest", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_shows_what_is_newer_than_the_pin_and_what_is_held_back(newest) -> None:
    rows = [
        newest.Package("click", "8.5.1", "8.5.1", "8.5.1"),
        newest.Package("numpy", "2.3.5", "2.4.0", "2.4.0"),
        newest.Package("otel", "-", "1.45.2", "1.45.2"),
        newest.Package("torch", "2.13.0", "2.13.0", "2.14.0"),
        newest.Package("transformers", "-", "5.19.0", "6.0.0", ("a", "vllm-cli-server")),
    ]
    assert newest.format_table(rows) == [
        "package       pinned  tried   newest",
        "click         8.5.1   8.5.1   8.5.1",
        "numpy         2.3.5   2.4.0   2.4.0   newer than the pin",
        "otel          -       1.45.2  1.45.2  not pinned",
        "torch         2.13.0  2.13.0  2.14.0  held back by the command line of `make test-newest`",
        "transformers  -       5.19.0  6.0.0   held back by a, vllm-cli-server",
    ]


@pytest.mark.parametrize(
    ("requirement", "is_excluded"),
    [
        ("Some_Name>=5,<6", True),
        ("some.name>=5", False),
        ("other<6", False),
        ("some-name<6; python_version < '3'", False),
        ("some-name<6; extra == 'more'", False),
    ],
)
def test_a_release_is_excluded_by_the_ranges_that_concern_it(newest, requirement: str, is_excluded: bool) -> None:
    assert newest.excludes(Requirement(requirement), "some-name", "6.0") == is_excluded


def test_every_dependency_of_the_project_is_listed_and_a_range_that_excludes_a_release_is_found(newest) -> None:
    packages = {package.name: package for package in newest._read_packages({"transformers": "6.0.0"})}
    assert {"torch", "pyyaml", "pytest"} <= packages.keys()
    assert packages["transformers"].newest == "6.0.0"
    assert "vllm-cli-server" in packages["transformers"].held_by
    assert packages["click"].newest == packages["click"].tried
