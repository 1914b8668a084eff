"""Lists the input items of a response as OpenAI's API does. The response's id determines the items' ids."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from base.errors import RequestError
from server.apis.responses.request import Content, InputItem

MAX_PAGE_ITEMS: Final = 100


class _Item(msgspec.Struct):
    id: str


class ItemPage(NamedTuple):
    """The part of a list of items that a client requests."""

    after: str | None = None
    """The id of the item after which the page begins. If None, the page begins at the first item."""
    limit: int = 20
    is_ascending: bool = False
    """Whether the oldest item comes first."""

    def cut(self, items: Sequence[msgspec.Raw]) -> bytes:
        """Returns this page's items as a JSON list. Raises RequestError if no item has the id `after`."""
        ordered = items if self.is_ascending else items[::-1]
        ids = [msgspec.json.decode(item, type=_Item).id for item in ordered]
        if self.after is not None and self.after not in ids:
            raise RequestError("`after` is not the id of an input item of this response.", param="after")
        start = 0 if self.after is None else ids.index(self.after) + 1
        end = start + self.limit
        shown = ids[start:end]
        first_id, last_id = (shown[0], shown[-1]) if shown else (None, None)
        page = {"object": "list", "data": ordered[start:end], "first_id": first_id, "last_id": last_id}
        return msgspec.json.encode(page | {"has_more": end < len(ids)})


def show_items(items: Sequence[InputItem], response_id: str) -> list[dict[str, Any]]:
    """Returns a request's items in the form for clients. The text of a message becomes a part."""
    key = response_id.removeprefix("resp_")
    return [_show(item, f"item_{key}_{index}") for index, item in enumerate(items)]


def _show(item: InputItem, item_id: str) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": item_id, "type": item.type, "status": "completed"} | msgspec.to_builtins(item)
    if item.type == "message":
        shown["content"] = _show_parts(item.content, "output_text" if item.role == "assistant" else "input_text")
    elif item.type == "reasoning":
        shown.setdefault("summary", [])
    return shown


def _show_parts(content: Content | None, text_type: str) -> list[dict[str, Any]]:
    parts = [{"type": text_type, "text": content}] if isinstance(content, str) else msgspec.to_builtins(content)
    return [part | ({"annotations": []} if part["type"] == "output_text" else {}) for part in parts]
