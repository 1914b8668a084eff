"""Where the download helper finds its modules."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

_ROOT: Final = str(Path(__file__).parents[2])
_NAMES: Final = ("site-packages", "dist-packages")


def import_path() -> list[str]:
    """This project's folder and those of installed packages; they follow the standard library."""
    installed = [path for path in sys.path if Path(path).name in _NAMES]
    spec = find_spec("huggingface_hub")
    own = [str(Path(spec.origin).parents[1])] if spec is not None and spec.origin is not None else []
    return list(dict.fromkeys((_ROOT, *own, *installed)))
