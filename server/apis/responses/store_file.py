"""A store of responses in a SQLite file, which survives a restart of the server."""

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from base.errors import ConfigError
from server.apis.responses.store import StoreBounds, StoredResponse

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
        if response.num_bytes <= self._bounds.max_bytes:
            await self._run(lambda: self._put(response_id, response))

    async def get(self, response_id: str) -> StoredResponse | None:
        try:
            return await self._run(lambda: self._get(response_id))
        except (sqlite3.Error, msgspec.DecodeError) as err:
            logger.warning("response %s cannot be read: %s", response_id, err)
            return None

    async def delete(self, response_id: str) -> bool:
        return await self._run(lambda: self._delete(response_id))

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

    def _delete(self, response_id: str) -> bool:
        with self._connection:
            return self._connection.execute("DELETE FROM responses WHERE id = ?", (response_id,)).rowcount > 0

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
