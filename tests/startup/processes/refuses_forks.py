"""A module after whose import forks of the forkserver cannot use the GPU. FORKS has a line for each fork."""

import os
from pathlib import Path

from startup.processes.forkserver import refuse_forks


def _note() -> None:
    with Path(os.environ["FORKS"]).open("a") as file:
        file.write("fork\n")


refuse_forks("an import has initialized a driver")
os.register_at_fork(before=_note)
