"""Reads the text of a models file."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from router.model_entry import ModelsFile
from router.models_file.reader import Defaults, read_models_file

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
