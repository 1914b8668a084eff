"""Makes Python read a baked folder's bytecode, which exists if the image's packages came without any."""

import os
import sys
from typing import Final

from startup.caches.baked import BYTECODE, find_baked

PREFIX: Final = "PYTHONPYCACHEPREFIX"
_DONT_WRITE: Final = "PYTHONDONTWRITEBYTECODE"


def use_baked_bytecode() -> bool:
    """Sets the bytecode cache of this process and of programs started after this call, unless one is set.

    Python compares each file with its source. What the folder lacks is compiled in memory, since nothing may
    be written to it.
    """
    baked = find_baked().folder
    if baked is None or sys.pycache_prefix is not None or not (baked / BYTECODE).is_dir():
        return False
    sys.pycache_prefix = os.environ[PREFIX] = str(baked / BYTECODE)
    sys.dont_write_bytecode = True
    os.environ[_DONT_WRITE] = "1"
    return True
