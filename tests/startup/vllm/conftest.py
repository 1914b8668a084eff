"""Fixtures for tests with a fake vLLM, and for tests that import small packages in this process."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.startup.vllm.fake_start import short_folder
from tests.startup.vllm.toy_package import ToyPackages


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for a start's files; its path is short enough for Unix sockets."""
    with short_folder() as path:
        yield path


@pytest.fixture
def toys(tmp_path: Path) -> Iterator[ToyPackages]:
    """Removes the test's modules and finders at its end."""
    modules, finders, path = set(sys.modules), list(sys.meta_path), list(sys.path)
    sys.path.insert(0, str(tmp_path))
    yield ToyPackages(tmp_path)
    sys.path[:] = path
    sys.meta_path[:] = finders
    for name in set(sys.modules) - modules:
        del sys.modules[name]
