"""Small packages to import in this process."""

import importlib
from pathlib import Path


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
