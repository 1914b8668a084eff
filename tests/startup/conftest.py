"""Fixtures: small packages that tests import in this process, and a fake Hugging Face hub."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from envs.registry import env
from startup import hook
from startup.imports import distributions, finder, late_modules
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
        """Marks all needs of a hook as met, even if no module here meets them."""
        hook._met.update(placed.needs)


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ToyPackages]:
    """Packages for one test, which may hide installed ones. At its end, modules and finders are as before."""
    monkeypatch.setattr(finder, "_finder", finder._Finder())
    for name in ("_unfit", "_met", "_executed"):
        monkeypatch.setattr(hook, name, type(getattr(hook, name))())
    monkeypatch.setattr(distributions, "_noted", {})
    monkeypatch.setattr(late_modules, "_late", {})
    monkeypatch.setattr(hook, "_package", hook._package.__wrapped__)
    monkeypatch.syspath_prepend(tmp_path)
    modules, finders = dict(sys.modules), list(sys.meta_path)
    yield ToyPackages(tmp_path)
    sys.meta_path[:] = finders
    for name in sys.modules.keys() - modules.keys():
        del sys.modules[name]
    sys.modules.update(modules)


@pytest.fixture
def hub_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub without repositories for the test's process and its children."""
    for variable in (env.HF_HUB_OFFLINE, env.TRANSFORMERS_OFFLINE, env.HF_TOKEN):
        monkeypatch.delenv(variable.name, raising=False)
    with HubServer().serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
