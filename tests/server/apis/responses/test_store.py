"""The store of responses has bounds, and drops responses in a fixed order."""

from collections.abc import Iterable

from server.apis.responses.archive import ResponseStore, StoredResponse, build_response_store
from server.terms.limits import LimitsConfig
from server.terms.server_config import GenerationConfig

RESPONSE = StoredResponse(b"12345", b"123", b"", (b"1", b"1"))


def open_store(max_responses: int = 10, max_bytes: int = 1000) -> ResponseStore:
    limits = LimitsConfig(max_stored_responses=max_responses, max_stored_bytes=max_bytes)
    store = build_response_store(GenerationConfig(enable_responses_store=True), limits)
    assert store is not None
    return store


def kept(store: ResponseStore, ids: Iterable[str]) -> list[str]:
    return [response_id for response_id in ids if store.get(response_id) is not None]


def test_a_deleted_response_leaves_its_room():
    store = open_store(max_bytes=25)
    for response_id in "ab":
        store.put(response_id, RESPONSE)
    assert [store.pop(response_id) for response_id in "aax"] == [RESPONSE, None, None]
    store.put("c", RESPONSE)
    assert kept(store, "abc") == ["b", "c"]


def test_the_oldest_responses_are_dropped():
    store = open_store(max_responses=2)
    for response_id in "abc":
        store.put(response_id, RESPONSE)
    assert kept(store, "abc") == ["b", "c"]


def test_responses_have_room_for_so_many_bytes():
    store = open_store(max_bytes=25)
    for response_id in "abc":
        store.put(response_id, RESPONSE)
    assert kept(store, "abc") == ["b", "c"]
    store.put("d", StoredResponse(b"1" * 20, b"", b""))
    assert kept(store, "abcd") == ["d"]


def test_a_response_that_is_larger_than_the_store_is_not_kept():
    store = open_store(max_bytes=15)
    store.put("a", RESPONSE)
    store.put("b", StoredResponse(b"1" * 16, b"", b""))
    assert kept(store, "ab") == ["a"]


def test_a_second_response_with_an_id_does_not_replace_the_first():
    store = open_store(max_bytes=25)
    store.put("a", RESPONSE)
    store.put("a", StoredResponse(b"other", b"", b""))
    store.put("b", RESPONSE)
    assert [store.get(response_id) for response_id in "ab"] == [RESPONSE, RESPONSE]
