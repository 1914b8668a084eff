"""Stores of responses: bounds, order of dropping, restarts and damaged files."""

import sqlite3

import msgspec
import pytest

from base.errors import ConfigError
from server.apis.responses.archive import build_response_store
from server.apis.responses.store import MemoryStore, StoreBounds, StoredResponse
from server.apis.responses.store_file import FileStore
from server.limits import LimitsConfig
from server.server_config import GenerationConfig

RESPONSE = StoredResponse(b"12345", b"123", (b"1", b"1"))


@pytest.fixture(params=["memory", "file"])
def open_store(request, tmp_path):
    """Opens a store with bounds; all of one test have the same file."""
    stores = []

    def open_one(max_responses=10, max_bytes=1000):
        bounds = StoreBounds(max_responses, max_bytes)
        is_file = request.param == "file"
        stores.append(FileStore(tmp_path / "responses.db", bounds) if is_file else MemoryStore(bounds))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


async def kept(store, ids):
    return [response_id for response_id in ids if await store.get(response_id) is not None]


async def test_a_response_is_found(open_store):
    store = open_store()
    await store.put("a", RESPONSE)
    assert await store.get("a") == RESPONSE
    assert await store.get("b") is None


async def test_a_deleted_response_leaves_its_room(open_store):
    store = open_store(max_bytes=25)
    for response_id in "ab":
        await store.put(response_id, RESPONSE)
    assert [await store.delete(response_id) for response_id in "aax"] == [True, False, False]
    await store.put("c", RESPONSE)
    assert await kept(store, "abc") == ["b", "c"]


async def test_a_response_of_a_release_without_items_is_found(tmp_path):
    store = FileStore(tmp_path / "responses.db", StoreBounds(10, 1000))
    try:
        data = msgspec.msgpack.encode({"body": b"1", "history": b"2", "events": None})
        with sqlite3.connect(tmp_path / "responses.db") as connection:
            connection.execute("INSERT INTO responses (id, num_bytes, data) VALUES ('a', 2, ?)", (data,))
        connection.close()
        assert await store.get("a") == StoredResponse(b"1", b"2")
    finally:
        store.close()


async def test_the_oldest_responses_are_dropped(open_store):
    store = open_store(max_responses=2)
    for response_id in "abc":
        await store.put(response_id, RESPONSE)
    assert await kept(store, "abc") == ["b", "c"]


async def test_responses_have_room_for_so_many_bytes(open_store):
    store = open_store(max_bytes=25)
    for response_id in "abc":
        await store.put(response_id, RESPONSE)
    assert await kept(store, "abc") == ["b", "c"]
    await store.put("d", StoredResponse(b"1" * 20, b""))
    assert await kept(store, "abcd") == ["d"]


async def test_a_response_that_is_larger_than_the_store_is_not_kept(open_store):
    store = open_store(max_bytes=15)
    await store.put("a", RESPONSE)
    await store.put("b", StoredResponse(b"1" * 16, b""))
    assert await kept(store, "ab") == ["a"]


async def test_a_second_response_with_an_id_does_not_replace_the_first(open_store):
    store = open_store(max_bytes=25)
    await store.put("a", RESPONSE)
    await store.put("a", StoredResponse(b"other", b""))
    await store.put("b", RESPONSE)
    assert [await store.get(response_id) for response_id in "ab"] == [RESPONSE, RESPONSE]


async def test_servers_share_a_file(tmp_path):
    path = tmp_path / "responses.db"
    first, second = (FileStore(path, StoreBounds(2, 1000)) for _ in range(2))
    try:
        await first.put("a", RESPONSE)
        await second.put("b", RESPONSE)
        await second.put("c", RESPONSE)
        assert await kept(first, "abc") == ["b", "c"]
    finally:
        first.close()
        second.close()


async def test_a_file_with_more_responses_is_cut_to_the_bounds(tmp_path):
    path = tmp_path / "responses.db"
    for bounds in (StoreBounds(10, 1000), StoreBounds(1, 1000)):
        store = FileStore(path, bounds)
        for response_id in "ab" if bounds.max_responses > 1 else "":
            await store.put(response_id, RESPONSE)
        found = await kept(store, "ab")
        store.close()
    assert found == ["b"]


async def test_a_damaged_entry_is_not_found(tmp_path, caplog):
    path = tmp_path / "responses.db"
    store = FileStore(path, StoreBounds(10, 1000))
    try:
        await store.put("a", RESPONSE)
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE responses SET data = x'00'")
        connection.close()
        assert await store.get("a") is None
        assert "cannot be read" in caplog.text
    finally:
        store.close()


@pytest.mark.parametrize("content", [None, b"not a database" * 100], ids=["folder", "other"])
def test_a_file_that_cannot_be_used_is_a_fault_of_the_flag(tmp_path, content):
    path = tmp_path / "responses.db"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    config = GenerationConfig(responses_store_file=str(path))
    with pytest.raises(ConfigError, match="--responses-store-file"):
        build_response_store(config, LimitsConfig())
