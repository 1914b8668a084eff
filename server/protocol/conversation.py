"""What every request that carries messages has in common."""

from typing import Annotated, Any

from msgspec import Meta

from server.errors import RequestError

Messages = Annotated[list[dict[str, Any]], Meta(min_length=1)]
"""As the client wrote them: roles and content parts are the renderer's business."""


def check_generation_prompt(add_generation_prompt: bool | None, continue_final_message: bool) -> None:
    """Raises RequestError when the last message would have to be both continued and closed."""
    if continue_final_message and add_generation_prompt:
        raise RequestError(
            "Cannot set both `continue_final_message` and `add_generation_prompt` to true.",
            param="add_generation_prompt",
        )
