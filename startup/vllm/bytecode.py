"""Has Python keep compiled modules where it can, for images whose packages came without them and are read-only.

Without them every process of every start compiles thousands of modules, which takes longer than anything else.
"""

import os
import sys
from collections.abc import Iterator
from importlib.util import cache_from_source
from pathlib import Path
from typing import Final

from envs.registry import env

_PREFIX: Final = "PYTHONPYCACHEPREFIX"
_PROBES: Final = ("__init__.py", "envs.py", "entrypoints/cli/serve.py")


def keep_bytecode(package: Path) -> str | None:
    """Returns what to tell the user, None where there is nothing to do; `package` is vLLM's folder.

    Processes started from now on keep theirs in the same place.
    """
    if sys.pycache_prefix is not None or all(path.exists() for path in _compiled(package)):
        return None
    if sys.dont_write_bytecode:
        return (
            f"{package} has no compiled modules and PYTHONDONTWRITEBYTECODE is set, so that every start compiles "
            "them again: unset it, or run `python -m compileall` when the image is built"
        )
    if os.access(package, os.W_OK):
        return None
    folder = env.VLLM_CACHE_ROOT.get() / "vllm_cli" / "bytecode"
    sys.pycache_prefix = os.environ[_PREFIX] = str(folder)
    return f"{package} has no compiled modules and cannot be written to: they are kept in {folder}"


def _compiled(package: Path) -> Iterator[Path]:
    return (Path(cache_from_source(str(path))) for name in _PROBES if (path := package / name).exists())
