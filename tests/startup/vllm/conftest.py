"""Fixtures of the tests with a fake vLLM, and of those that import small packages in this process."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.startup.vllm.fake_start import short_folder
from tests.startup.vllm.toy_package import ToyPackages


@pytest.fixture
def folder() -> Iterator[Path]:
    """For all that a start writes; its path is short enough for Unix sockets."""
    with short_folder() as path:
        yield path


@pytest.fixture
def toys(tmp_path: Path) -> Iterator[ToyPackages]:
    """Modules and finders that come while the test runs go with it."""
    modules, finders, path = set(sys.modules), list(sys.meta_path), list(sys.path)
    sys.path.insert(0, str(tmp_path))
    yield ToyPackages(tmp_path)
    sys.path[:] = path
    sys.meta_path[:] = finders
    for name in set(sys.modules) - modules:
        del sys.modules[name]
