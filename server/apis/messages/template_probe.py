"""Properties of the model's chat template, found by rendering a conversation.

Two of vLLM's rules for /v1/messages depend on them. Each is found with the first request that needs it.
"""

import logging
from typing import Any, Final, get_args

from base.errors import RequestError
from server.apis.messages.request import Effort
from server.generation.chat_request import ChatRequest, ReasoningEffort
from server.generation.chat_run import chat_options
from server.operation.inference import Inference
from server.renderers.prompts import ChatOptions

logger = logging.getLogger(__name__)

_SYSTEM_TWICE: Final = [{"role": role, "content": "t"} for role in ("system", "user", "system", "user")]
_HI: Final = [{"role": "user", "content": "Hi"}]
_TOOL: Final = {"type": "function", "function": {"name": "t", "parameters": {"type": "object", "properties": {}}}}


class TemplateProbe:
    """One per server; used on the event loop."""

    def __init__(self, inference: Inference) -> None:
        self._config = inference.config
        self._renderer = inference.renderer
        effort = inference.config.generation.anthropic_disabled_thinking_effort
        self._disabled_effort: ReasoningEffort | None = None if effort == "auto" else effort
        self._merges_system: bool | None = None

    async def merges_system(self) -> bool:
        """Whether system messages must be moved to the start, because the template rejects others."""
        if self._merges_system is None:
            self._merges_system = await self._rejects_later_system()
            if self._merges_system:
                logger.warning(
                    "the chat template accepts system messages only at the start: /v1/messages moves later ones there"
                )
                logger.warning(
                    "each moved system message makes the engine compute the whole prompt again; "
                    "a --chat-template that accepts them anywhere avoids this"
                )
        return self._merges_system

    async def disabled_effort(self) -> ReasoningEffort:
        """The `reasoning_effort` for disabled thinking: `low` if the template ignores or rejects `none`."""
        if self._disabled_effort is None:
            self._disabled_effort = await self._find_disabled_effort()
            logger.info("disabled thinking in /v1/messages is reasoning_effort '%s'", self._disabled_effort)
        return self._disabled_effort

    async def _rejects_later_system(self) -> bool:
        for tools in (None, [_TOOL]):  # some models have a template for each
            options = ChatOptions(add_generation_prompt=False, tools=tools)
            if await self._render(_SYSTEM_TWICE, options) is None:
                return True
        return False

    async def _find_disabled_effort(self) -> ReasoningEffort:
        prompt = await self._render_effort("none")
        if prompt is None or any([await self._render_effort(effort) == prompt for effort in get_args(Effort)]):
            return "low"
        return "none"

    async def _render_effort(self, effort: ReasoningEffort) -> list[int] | None:
        request = ChatRequest(messages=_HI, reasoning_effort=effort)
        return await self._render(_HI, chat_options(request, self._config.generation))

    async def _render(self, messages: list[dict[str, Any]], options: ChatOptions) -> list[int] | None:
        try:
            return (await self._renderer.run_in_pool(self._renderer.render_chat, messages, options)).token_ids
        except RequestError:
            return None
