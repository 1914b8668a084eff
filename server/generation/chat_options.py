"""The renderer's options for a conversation, taken from the request."""

from server.config import ServerConfig
from server.generation.chat_request import ChatRequest
from server.generation.tools import shown_tools
from server.renderers.prompts import ChatOptions


def chat_options(request: ChatRequest, config: ServerConfig) -> ChatOptions:
    """Options for a chat completion."""
    is_without_tools = config.exclude_tools_when_tool_choice_none and request.tool_choice == "none"
    return ChatOptions(
        add_generation_prompt=request.opens_message,
        continue_final_message=request.continue_final_message,
        tools=None if is_without_tools else shown_tools(request.tools),
        documents=request.documents,
        chat_template=request.chat_template,
        chat_template_kwargs=request.template_kwargs,
        add_special_tokens=request.add_special_tokens,
        truncate_prompt_tokens=request.truncate_prompt_tokens,
        truncation_side=request.truncation_side,
        mm_processor_kwargs=request.mm_processor_kwargs,
    )
