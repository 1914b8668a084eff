"""The members of `input` in requests to /v1/responses."""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

ItemStatus = Literal["in_progress", "completed", "incomplete"]

_REQUIRED: Final = {
    "message": ("role", "content"),
    "reasoning": (),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "custom_tool_call": ("call_id", "name", "input"),
    "custom_tool_call_output": ("call_id", "output"),
}
"""Type of an item -> the fields that it must have."""

_TEXT_KEYS: Final = {
    "input_text": "text",
    "output_text": "text",
    "text": "text",
    "refusal": "refusal",
    "reasoning_text": "text",
    "summary_text": "text",
}
"""Type of a part with text -> the key of the text."""


class InputPart(msgspec.Struct, kw_only=True):
    """A part of a message, of a tool's output or of reasoning."""

    type: Annotated[str, Meta(extra_json_schema={"enum": [*_TEXT_KEYS, "input_image"]})]
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None

    def __post_init__(self) -> None:
        key = _TEXT_KEYS.get(self.type, "image_url" if self.type == "input_image" else None)
        if key is None:
            raise ValueError(f"Unsupported content part type: '{self.type}'")
        if getattr(self, key) is None:
            raise ValueError(f"A content part of type '{self.type}' needs `{key}`")

    @property
    def shown_text(self) -> str:
        """The text of a part that is not an image."""
        return getattr(self, _TEXT_KEYS[self.type])  # type: ignore[no-any-return]


Content = str | list[InputPart]


class InputItem(msgspec.Struct, kw_only=True):
    """A message, reasoning, a tool call or its output; fields that its type does not have are ignored."""

    type: Annotated[str, Meta(extra_json_schema={"enum": [*_REQUIRED]})] = "message"
    status: ItemStatus | None = None

    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Content | None = None
    summary: list[InputPart] = []
    encrypted_content: str | None = None

    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str | None = None
    input: str | None = None
    output: Content | None = None

    def __post_init__(self) -> None:
        required = _REQUIRED.get(self.type)
        if required is None:
            raise ValueError(f"Unsupported input item type: '{self.type}'")
        for name in required:
            if getattr(self, name) is None:
                raise ValueError(f"An input item of type '{self.type}' needs `{name}`")
        if self.encrypted_content:
            raise ValueError("Encrypted content is not supported")
