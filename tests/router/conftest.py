"""Reads the text of a models file, and gives models' processes a place."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import pytest

from router.child.child import Child, ChildPlace
from router.child.log import LogRelay
from router.child.place import ChildPlaces
from router.model_entry import ModelEntry, ModelsFile
from router.models_file.reader import Defaults, read_models_file
from startup.logs.options import LogOptions
from startup.storage.temp_folder import own_folder

NO_DEFAULTS: Final = Defaults()


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[ModelsFile, list[str]]]:
    """A function that returns the content of a models file, and its faults as texts."""
    monkeypatch.chdir(tmp_path)

    def read_text(text: str | bytes, defaults: Defaults = NO_DEFAULTS) -> tuple[ModelsFile, list[str]]:
        path = Path("models.yaml")
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        content, faults = read_models_file(path, defaults)
        return content, [str(fault) for fault in faults]

    return read_text


@contextmanager
def open_places(output: Path) -> Iterator[Callable[[ModelEntry | None, int], ChildPlace]]:
    """Yields a function that gives a process its place. All processes write to the file."""
    with own_folder() as folder, output.open("ab") as file, closing(LogRelay("text", file.fileno())) as relay:
        places = ChildPlaces(folder, LogOptions(level="INFO"))
        yield lambda _, number: ChildPlace(places.socket_path(number), places.environment(number, {}), relay)


class SmallOwner:
    """Replaces the router. A test sets what it answers to the pool."""

    def __init__(self) -> None:
        self.place: Callable[[ModelEntry, int], ChildPlace]
        self.has_standby = False
        self.check_again: Callable[[ModelEntry], ModelEntry] = lambda entry: entry

    def keeps_imports(self, entry: ModelEntry) -> bool:
        return self.has_standby

    async def before_stop(self, child: Child) -> None:
        pass

    def give_up(self, model: str) -> None:
        pass


@pytest.fixture
def owner() -> SmallOwner:
    return SmallOwner()
