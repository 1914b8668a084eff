"""Keeps responses that have ended, and the conversations that later requests continue."""

import asyncio
import logging
import os
import sqlite3
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeVar

import msgspec

from base.errors import ConfigError, RequestError
from server.apis.responses.conversion import Message, extend_conversation
from server.apis.responses.output import ResponseEvent
from server.apis.responses.run import ResponseRun
from server.http_body.response_body import encode_named_event
from server.limits import LimitsConfig
from server.renderers.base import BaseRenderer
from server.server_config import GenerationConfig

LARGE_BYTES: Final = 32 << 10
"""Encoding or decoding this much JSON takes about as long as handing it to a thread."""
logger = logging.getLogger(__name__)
T = TypeVar("T")
_LOCK_TIMEOUT_S: Final = 5.0
"""How long another server with the same file may write."""
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS responses (
    position INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, num_bytes INTEGER NOT NULL, data BLOB NOT NULL
)
"""
_DROP_OLDEST: Final = """
DELETE FROM responses WHERE position <= (
    SELECT MAX(position) FROM (
        SELECT position, ROW_NUMBER() OVER newest AS number, SUM(num_bytes) OVER newest AS total
        FROM responses WINDOW newest AS (ORDER BY position DESC)
    ) WHERE number > ? OR total > ?
)
"""


class StoredResponse(msgspec.Struct, frozen=True):
    """A response that has ended."""

    body: bytes
    """The response as JSON."""
    history: bytes
    """The conversation up to and including the response, as JSON; instructions are not part of it."""
    events: tuple[bytes, ...] | None = None
    """The events of a response in the background that was streamed."""

    @property
    def num_bytes(self) -> int:
        """Size of all parts."""
        return len(self.body) + len(self.history) + sum(map(len, self.events or ()))


class StoreBounds(NamedTuple):
    """Beyond these, the oldest responses are dropped."""

    max_responses: int
    max_bytes: int


class ResponseStore(Protocol):
    """Keeps responses by id."""

    async def put(self, response_id: str, response: StoredResponse) -> None:
        """Keeps a response, unless it is too large or its id is taken; drops the oldest beyond the bounds."""

    async def get(self, response_id: str) -> StoredResponse | None:
        """A response; None if it is unknown or has been dropped."""

    def close(self) -> None:
        """Releases files and threads."""


class MemoryStore:
    """Keeps responses as long as this process lives; used on the event loop only."""

    def __init__(self, bounds: StoreBounds) -> None:
        self._bounds = bounds
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()
        self.num_bytes = 0
        """Size of all responses."""

    async def put(self, response_id: str, response: StoredResponse) -> None:
        if response.num_bytes > self._bounds.max_bytes or response_id in self._responses:
            return
        self._responses[response_id] = response
        self.num_bytes += response.num_bytes
        while len(self._responses) > self._bounds.max_responses or self.num_bytes > self._bounds.max_bytes:
            _, oldest = self._responses.popitem(last=False)
            self.num_bytes -= oldest.num_bytes

    async def get(self, response_id: str) -> StoredResponse | None:
        return self._responses.get(response_id)

    def close(self) -> None:
        pass


def build_response_store(config: GenerationConfig, limits: LimitsConfig) -> ResponseStore | None:
    """The configured store; None keeps nothing.

    Raises:
        ConfigError: the file cannot be used.
    """
    bounds = StoreBounds(limits.max_stored_responses, limits.max_stored_bytes)
    if not (config.enable_responses_store and all(bounds)):
        return None
    if config.responses_store_file is None:
        return MemoryStore(bounds)
    from server.apis.responses.archive import FileStore  # noqa: PLC0415 - SQLite is seldom needed

    return FileStore(Path(config.responses_store_file), bounds)


class ResponseArchive:
    """One per server, used on the event loop; large conversations are encoded in the renderer pool."""

    def __init__(self, store: ResponseStore | None, renderer: BaseRenderer) -> None:
        """Without a store nothing is kept."""
        self._store = store
        self._renderer = renderer

    @property
    def is_enabled(self) -> bool:
        """Whether responses are kept."""
        return self._store is not None

    async def keep(self, run: ResponseRun, events: tuple[bytes, ...] | None = None) -> None:
        """Keeps a response unless `store` is false, with its events if it ran in the background."""
        if self._store is None or not run.request.store:
            return
        stored = await self._renderer.run_unless(run.is_small, _encode, run, events)
        await self._store.put(run.response["id"], stored)

    async def encode_event(self, run: ResponseRun, event: ResponseEvent) -> bytes:
        """An event as bytes; those with the whole response repeat large parts of the request."""
        is_small = run.is_small or "response" not in event
        return await self._renderer.run_unless(is_small, encode_named_event, event)

    async def find(self, response_id: str) -> StoredResponse:
        """A response; raises RequestError (404) if it is not kept, or not any more."""
        stored = None if self._store is None else await self._store.get(response_id)
        if stored is None:
            raise invalid_response(f"Response with id '{response_id}' not found.", "response_id", status=404)
        return stored

    async def decode_history(self, stored: StoredResponse) -> list[Message]:
        """The conversation up to and including a response."""
        return await self._renderer.run_unless(len(stored.history) < LARGE_BYTES, _decode, stored.history)


def invalid_response(message: str, param: str, *, status: int = 400) -> RequestError:
    """An error with vLLM's type for responses that are not there, or not in the right state."""
    return RequestError(message, param=param, status=status, type="invalid_request_error")


def _encode(run: ResponseRun, events: tuple[bytes, ...] | None) -> StoredResponse:
    history = extend_conversation(run.messages, run.response["output"])
    return StoredResponse(msgspec.json.encode(run.response), msgspec.json.encode(history), events)


def _decode(history: bytes) -> list[Message]:
    return msgspec.json.decode(history, type=list[Message])


class FileStore:
    """Keeps responses in a file; several servers may share it. SQLite runs in a thread of its own."""

    def __init__(self, path: Path, bounds: StoreBounds) -> None:
        """Raises ConfigError if the file cannot be opened, or is not such a store."""
        self._bounds = bounds
        try:
            with suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))  # conversations are private
            self._connection = sqlite3.connect(path, timeout=_LOCK_TIMEOUT_S, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            with self._connection:
                self._connection.execute(_SCHEMA)
                self._connection.execute(_DROP_OLDEST, self._bounds)
        except (OSError, sqlite3.Error) as err:
            expected = f"a file that can be written and is a SQLite database ({err})"
            raise ConfigError("--responses-store-file", str(path), expected) from err
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="response-store")

    async def put(self, response_id: str, response: StoredResponse) -> None:
        """A failure, such as a full disk, is logged; the response then is not kept."""
        if response.num_bytes > self._bounds.max_bytes:
            return
        try:
            await self._run(lambda: self._put(response_id, response))
        except sqlite3.Error as err:
            logger.warning("response %s was not stored: %s", response_id, err)

    async def get(self, response_id: str) -> StoredResponse | None:
        try:
            return await self._run(lambda: self._get(response_id))
        except (sqlite3.Error, msgspec.DecodeError) as err:
            logger.warning("response %s cannot be read: %s", response_id, err)
            return None

    def close(self) -> None:
        self._thread.shutdown()
        self._connection.close()

    def _put(self, response_id: str, response: StoredResponse) -> None:
        row = (response_id, response.num_bytes, msgspec.msgpack.encode(response))
        with self._connection:
            self._connection.execute("INSERT OR IGNORE INTO responses (id, num_bytes, data) VALUES (?, ?, ?)", row)
            self._connection.execute(_DROP_OLDEST, self._bounds)

    def _get(self, response_id: str) -> StoredResponse | None:
        row = self._connection.execute("SELECT data FROM responses WHERE id = ?", (response_id,)).fetchone()
        return None if row is None else msgspec.msgpack.decode(row[0], type=StoredResponse)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
