"""Small packages that tests import in this process, and a stand-in for the Hugging Face hub."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from envs.registry import env
from startup.ground.hooks import hook
from startup.imports import finder
from tests.support.hub import HubServer


class ToyPackages:
    """Writes modules into a folder on the path."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, name: str, source: str = "") -> None:
        """Writes a module by its dotted name, and its parent packages."""
        *parents, last = name.split(".")
        folder = self._folder
        for parent in parents:
            folder /= parent
            folder.mkdir(exist_ok=True)
            (folder / "__init__.py").touch()
        (folder / f"{last}.py").write_text(source)
        importlib.invalidate_caches()

    def fit(self, placed: hook.Hook) -> None:
        """Takes all that a hook needs for granted, also what no module here has."""
        hook._met.update(placed.needs)


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ToyPackages]:
    """Removes the test's modules and finders at its end."""
    monkeypatch.setattr(finder, "_finder", finder._Finder())
    for name in ("_unfit", "_met", "_executed"):
        monkeypatch.setattr(hook, name, type(getattr(hook, name))())
    monkeypatch.setattr(hook, "_package", hook._package.__wrapped__)
    modules, finders, path = set(sys.modules), list(sys.meta_path), list(sys.path)
    sys.path.insert(0, str(tmp_path))
    yield ToyPackages(tmp_path)
    sys.path[:] = path
    sys.meta_path[:] = finders
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.fixture
def hub_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub for the test's process and its children: without repositories; it answers at once."""
    for variable in (env.HF_HUB_OFFLINE, env.TRANSFORMERS_OFFLINE, env.HF_TOKEN):
        monkeypatch.delenv(variable.name, raising=False)
    with HubServer().serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
