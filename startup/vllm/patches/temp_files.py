"""Puts the sockets and rendezvous files of vLLM's processes into a folder that the launcher removes.

vLLM leaves these files in TMPDIR, even after a normal exit.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from envs import foreign
from envs.registry import env
from startup.hook import Hook, Name
from startup.imports.finder import wraps
from startup.storage.temp_folder import MAX_BYTES
from startup.vllm.journal import this_start

_MODULE: Final = "vllm.utils.network_utils"
_SOCKET: Final = Name(_MODULE, "get_open_zmq_ipc_path", ())
_RENDEZVOUS: Final = Name(_MODULE, "get_file_store_init_method", ())
TEMP_FILES: Final = Hook(
    "temporary files",
    does="puts vLLM's sockets and rendezvous files into a folder that is removed",
    without="the files stay in TMPDIR",
    promise="no file is left",
    needs=(_SOCKET, _RENDEZVOUS),
    places={"api", "forkserver", "template"},
)
_FOLDER_OF_SOCKETS: Final = "VLLM_RPC_BASE_PATH"
_MOST_ADDRESS_BYTES: Final = 107
"""Longest path of a UNIX socket, in bytes (unix(7), `sun_path`)."""


def variables_of_new_programs() -> dict[str, str]:
    """Variables that make a new program put its files into the same folder, because it has no hooks."""
    if this_start.record is None or len(os.fsencode(this_start.record.folder)) > MAX_BYTES:
        return {}
    return {env.TMPDIR.name: str(this_start.record.folder)}


@wraps(TEMP_FILES, _SOCKET, _RENDEZVOUS)
def _in_folder(make_address: Callable[[], str]) -> Callable[[], str]:
    def make() -> str:
        address = make_address()
        scheme, _, path = address.partition("://")
        if this_start.record is None or (scheme == "ipc" and foreign.text_of(_FOLDER_OF_SOCKETS)):
            return address
        moved = this_start.record.folder / Path(path).name
        return f"{scheme}://{moved}" if len(os.fsencode(moved)) <= _MOST_ADDRESS_BYTES else address

    return make
