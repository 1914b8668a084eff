"""Small packages that tests import in this process."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from startup.imports import finder
from tests.startup.toy_package import ToyPackages


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ToyPackages]:
    """Removes the test's modules and finders at its end."""
    monkeypatch.setattr(finder, "_finder", finder._Finder())
    modules, finders, path = set(sys.modules), list(sys.meta_path), list(sys.path)
    sys.path.insert(0, str(tmp_path))
    yield ToyPackages(tmp_path)
    sys.path[:] = path
    sys.meta_path[:] = finders
    for name in set(sys.modules) - modules:
        del sys.modules[name]
