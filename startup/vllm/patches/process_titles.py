"""Makes the titles of vLLM's processes visible in processes whose command line was replaced.

`setproctitle` writes a title over the command line that `exec` put into memory. In forks of a standby's
template process, the kernel reads the command line from other memory (`base.machine.command_line`).
"""

import importlib
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from base.machine.command_line import replace_command_line
from startup.hook import Hook, Name
from startup.imports.finder import wraps

_SET_TITLE: Final = Name("setproctitle", "setproctitle")
PROCESS_TITLES: Final = Hook(
    "process titles",
    does="shows vLLM's titles in forks of a standby",
    without="`ps` shows the command line of the standby",
    promise="the same titles in warm and cold starts",
    needs=(_SET_TITLE,),
    places={"template"},
)


def find_title_memory() -> None:
    """Makes `setproctitle`, if installed, find the command line in memory. Called before other imports.

    At its first call, `setproctitle` searches for the command line in front of the first environment variable
    in memory. If an import has set this variable before, as cv2 does with LD_LIBRARY_PATH, the variable has
    moved. Titles then have no effect in this process and its forks.
    """
    with suppress(ImportError):
        importlib.import_module("setproctitle").getproctitle()


@wraps(PROCESS_TITLES, _SET_TITLE)
def _show_title(set_title: Callable[[str], None]) -> Callable[[str], None]:
    def set_and_show(title: str) -> None:
        set_title(title)
        replace_command_line(os.fsencode(title) + b"\0")

    return set_and_show
