"""Keeps responses that have ended, and their conversations, which later requests can continue."""

import logging
from typing import Final

import msgspec

from base.errors import RequestError
from server.apis.responses.conversion import Message, extend_conversation
from server.apis.responses.input_items import show_items
from server.apis.responses.output import ResponseEvent
from server.apis.responses.response_run import ResponseRun
from server.terms.bounded_cache import BoundedCache
from server.terms.http_body.response_body import encode_named_event
from server.terms.limits import LimitsConfig
from server.terms.server_config import GenerationConfig
from server.text.renderers.base import BaseRenderer

logger = logging.getLogger(__name__)


class StoredResponse(msgspec.Struct, frozen=True):
    """A response that has ended."""

    body: bytes
    """The response as JSON."""
    history: bytes
    """The conversation up to and including the response, as JSON, without the instructions."""
    items: bytes
    """The items of the request's input as JSON."""
    events: tuple[bytes, ...] | None = None
    """The events of a background response that was created with `stream`. None for other responses."""

    @property
    def num_bytes(self) -> int:
        return len(self.body) + len(self.history) + len(self.items) + sum(map(len, self.events or ()))


ResponseStore = BoundedCache[str, StoredResponse]
"""Response id -> response. The store lasts as long as this process. Used only on the event loop."""

LARGE_BYTES: Final = 32 << 10
"""Smaller JSON is decoded on the event loop, because passing it to a thread would take about as long."""


def build_response_store(config: GenerationConfig, limits: LimitsConfig) -> ResponseStore | None:
    """Builds the store, which drops the oldest responses. Returns None if no responses are to be kept."""
    most, max_bytes = limits.max_stored_responses, limits.max_stored_bytes
    if not (config.enable_responses_store and most and max_bytes):
        return None
    return BoundedCache(max_bytes, lambda response: response.num_bytes, max_entries=most)


class ResponseArchive:
    """The archive of a server, on the event loop. Encodes large conversations in the renderer pool."""

    def __init__(self, store: ResponseStore | None, renderer: BaseRenderer) -> None:
        """If `store` is None, no responses are kept."""
        self._store = store
        self._renderer = renderer

    @property
    def is_enabled(self) -> bool:
        return self._store is not None

    async def keep(self, run: ResponseRun, events: tuple[bytes, ...] | None = None) -> None:
        """Keeps a response unless its request has `store: false`. Only background responses have `events`.

        If the response cannot be encoded, the failure is logged and the response is not kept.
        """
        if self._store is None or not run.request.store:
            return
        try:
            self._store.put(run.response["id"], await self.encode(run, events))
        except Exception as err:  # noqa: BLE001
            logger.warning("response %s was not stored: %r", run.response["id"], err)

    async def encode(self, run: ResponseRun, events: tuple[bytes, ...] | None = None) -> StoredResponse:
        """Encodes a response in its present state, in the form in which it would be kept."""
        return await self._renderer.pools.run_unless(run.is_small, _encode, run, events)

    async def encode_event(self, run: ResponseRun, event: ResponseEvent) -> bytes:
        """Encodes an event. An event with the whole response can be large, so the pool encodes it."""
        is_small = run.is_small or "response" not in event
        return await self._renderer.pools.run_unless(is_small, encode_named_event, event)

    def find(self, response_id: str) -> StoredResponse:
        """Returns a kept response. Raises RequestError (404) if it was never kept, or was dropped."""
        stored = None if self._store is None else self._store.get(response_id)
        if stored is None:
            raise _not_found(response_id)
        return stored

    def delete(self, response_id: str) -> None:
        """Drops a response. Raises RequestError (404) if it is not kept."""
        if self._store is None or self._store.pop(response_id) is None:
            raise _not_found(response_id)

    async def input_items(self, stored: StoredResponse) -> list[msgspec.Raw]:
        """Returns the input items of a response, after all items of the responses that it continues.

        If an earlier response is no longer kept, its items and those of all responses before it are left out.
        """
        items: list[msgspec.Raw] = []
        found: StoredResponse | None = stored
        while found is not None:
            own, body = await self._renderer.pools.run(_decode_items, found)
            items = own + (body.output if found is not stored else []) + items
            previous_id = body.previous_response_id
            found = self._store.get(previous_id) if self._store and previous_id else None
        return items

    async def decode_history(self, stored: StoredResponse) -> list[Message]:
        """Decodes the conversation up to and including a response."""
        return await self._renderer.pools.run_unless(len(stored.history) < LARGE_BYTES, _decode, stored.history)


def invalid_response(message: str, param: str, *, status: int = 400) -> RequestError:
    """Creates vLLM's error for a response that does not exist, or is in the wrong state."""
    return RequestError(message, param=param, status=status, type="invalid_request_error")


def _not_found(response_id: str) -> RequestError:
    return invalid_response(f"Response with id '{response_id}' not found.", "response_id", status=404)


class _Body(msgspec.Struct):
    """The fields of a response's body that `ResponseArchive.input_items` needs."""

    output: list[msgspec.Raw]
    previous_response_id: str | None


_BODIES: Final = msgspec.json.Decoder(_Body)
"""Made once, because msgspec crashes if two threads of the pool meet the class at its first use."""


def _decode_items(stored: StoredResponse) -> tuple[list[msgspec.Raw], _Body]:
    return msgspec.json.decode(stored.items, type=list[msgspec.Raw]), _BODIES.decode(stored.body)


def _encode(run: ResponseRun, events: tuple[bytes, ...] | None) -> StoredResponse:
    history = extend_conversation(run.messages, run.response["output"])
    items = show_items(run.request.items, run.response["id"])
    body, encoded_history, encoded_items = map(msgspec.json.encode, (run.response, history, items))
    return StoredResponse(body, encoded_history, encoded_items, events)


def _decode(history: bytes) -> list[Message]:
    return msgspec.json.decode(history, type=list[Message])
