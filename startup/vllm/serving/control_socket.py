"""Puts vLLM's engine to sleep and wakes it up, at the request of the router that has started this server.

The router uses a Unix socket next to the server's own socket. Clients cannot reach this socket, and vLLM's
endpoints for sleeping stay closed. A connection has one request and one answer. Both are lines of JSON.
"""

import asyncio
import json
import logging
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from base.json_depth import read_json
from base.lifecycle import Lifecycle
from base.machine.file_stamps import FolderStamps, read_folder
from base.server_settings import control_socket
from envs.registry import env

logger = logging.getLogger(__name__)

_MOST_BYTES: Final = 4096
_LONGEST_ERROR: Final = 1000
_SENT_S: Final = 10.0
"""Seconds in which a request must arrive."""


def open_control(client: Any, lifecycle: Lifecycle, model_files: FolderStamps) -> None:
    """Opens the socket if this server listens at a path that a router has set, and vLLM's sleep mode is on.

    If there are several API servers, only the first server opens the socket, because calls of its client
    reach all engines.

    Args:
        client: vLLM's AsyncLLM.
        lifecycle: the server's states. The socket is removed when the state is no longer `ready`.
        model_files: the stamps of the model's files when engines have read them. Empty: the current stamps.
    """
    path = env.VCLI_ROUTER.get()
    if path is None or not Path(path).is_socket():
        return
    try:
        if client.vllm_config.model_config.enable_sleep_mode and client.engine_core.client_index == 0:
            folder = Path(client.vllm_config.model_config.model)
            control = _Control(client, control_socket(path), folder, model_files or read_folder(folder))
            lifecycle.subscribe(lambda _: control.close())
    except (AttributeError, OSError) as err:
        logger.debug("no control socket: the router stops this model instead of putting it to sleep: %s", err)


def is_changing() -> bool:
    """Whether the engines are falling asleep or waking up. Works in each of several API servers."""
    path = env.VCLI_ROUTER.get()
    return path is not None and _mark(control_socket(path)).exists()


def _mark(path: Path) -> Path:
    """The file that exists while the engines fall asleep or wake up."""
    return path.with_name(f"{path.name}.busy")


class _Control:
    """The open socket. Used on the event loop."""

    def __init__(self, client: Any, path: Path, model: Path, model_files: FolderStamps) -> None:
        self._client = client
        self._path = path
        self._model = model
        self._model_files = model_files
        self._level = 0
        """The level at which the engines sleep. 0 while they are awake."""
        self._turn = asyncio.Lock()
        """Makes a request wait for the previous request."""
        path.unlink(missing_ok=True)  # left by a killed server
        _mark(path).unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        path.chmod(0o600)  # nobody can connect before it listens
        self._listener.listen()
        self._serving = asyncio.get_running_loop().create_task(self._serve(), name="control-socket")

    def close(self) -> None:
        """Removes the socket. A running request still gets its answer if there is time."""
        self._path.unlink(missing_ok=True)
        self._serving.cancel()

    async def _serve(self) -> None:
        async with await asyncio.start_unix_server(self._answer, sock=self._listener, limit=_MOST_BYTES) as server:
            await server.serve_forever()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answer = await self._carry_out(await asyncio.wait_for(reader.readline(), _SENT_S))
        except Exception as err:  # noqa: BLE001 - the router decides what follows
            text = f"{type(err).__name__}: {err}".partition("\n")[0]
            logger.warning("the router's request was not carried out: %s", text)
            answer = {"ok": False, "error": text[:_LONGEST_ERROR]}
        with suppress(OSError):
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()

    async def _carry_out(self, line: bytes) -> dict[str, Any]:
        request = read_json(line)
        async with self._turn:
            begin_s = time.perf_counter()
            _mark(self._path).touch()
            try:
                match request:
                    case {"do": "sleep", "level": 1 | 2 as level}:
                        await self._sleep(level)
                    case {"do": "wake"}:
                        await self._wake_up()
                    case _:
                        raise ValueError("the request is neither sleep at level 1 or 2 nor wake")
            finally:
                _mark(self._path).unlink(missing_ok=True)
            return {"ok": True, "took_s": round(time.perf_counter() - begin_s, 3)}

    async def _sleep(self, level: int) -> None:
        """Puts the engines to sleep. If this fails, wakes them up, because they may have released memory."""
        if self._level:
            return
        if level == 2:
            await self._check_files()
        self._level = level
        try:
            await self._client.sleep(level, mode="wait")
        except Exception:
            await self._client.collective_rpc("wake_up")  # the engine may assume that its workers are awake
            await self._wake_up()
            raise

    async def _wake_up(self) -> None:
        if self._level == 2:
            await self._check_files()
            await self._client.wake_up(["weights"])
            await self._client.collective_rpc("reload_weights")
            await self._client.wake_up(["kv_cache"])
        elif self._level:
            await self._client.wake_up()
        self._level = 0

    async def _check_files(self) -> None:
        """Raises ValueError if the files that a wake from level 2 reads are no longer those of the start."""
        if not self._model.is_dir() or await asyncio.to_thread(read_folder, self._model) != self._model_files:
            raise ValueError(f"the files of {self._model} have changed since the start, so they cannot be read again")
