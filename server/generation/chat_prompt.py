"""Renders the conversation of a chat request, or takes the prompt that an earlier stage has rendered."""

from server.errors import RequestError
from server.generation.chat_options import chat_options
from server.generation.chat_request import ChatRequest
from server.operation.inference import Inference
from server.operation.request_context import RequestContext
from server.renderers.conversations.messages import TEXT_KEYS
from server.renderers.prompt_limits import check_token_ids
from server.renderers.prompts import ChatOptions, RenderedPrompt

_FORWARDED = "kv_transfer_params.prompt_token_ids"


async def render_chat_request(inference: Inference, request: ChatRequest, context: RequestContext) -> RenderedPrompt:
    """The prompt of a request.

    Raises:
        RequestError: the conversation or the forwarded token ids are invalid.
    """
    options = await inference.renderer.run_unless(context.is_small, _read, inference, request)
    context.hold(options)
    if isinstance(options, RenderedPrompt):
        return options
    prompt = await inference.renderer.render_chat_async(request.messages, options)
    if request.prompt_logprobs is not None and prompt.inputs is not None and prompt.inputs.embeds is not None:
        raise RequestError(
            "`prompt_logprobs` is not compatible with `prompt_embeds`: they have no tokens.", param="prompt_logprobs"
        )
    return prompt


def _read(inference: Inference, request: ChatRequest) -> RenderedPrompt | ChatOptions:
    """The prompt that an earlier stage has rendered, or the options for rendering it."""
    forwarded = _forwarded_token_ids(request)
    if forwarded is None:
        return chat_options(request, inference.config)
    check_token_ids(forwarded, vocab_size=inference.renderer.vocab_size, param=_FORWARDED)
    return RenderedPrompt(forwarded, text=None)


def _forwarded_token_ids(request: ChatRequest) -> list[int] | None:
    """The prompt that a prefill stage has rendered; ignored, as in vLLM, where the messages are needed."""
    token_ids = (request.kv_transfer_params or {}).get("prompt_token_ids")
    if token_ids is None or request.echo or _has_other_parts(request):
        return None
    # a bool is an int, too
    if not isinstance(token_ids, list) or not token_ids or any(type(i) is not int or i < 0 for i in token_ids):
        raise RequestError(f"`{_FORWARDED}` must be a non-empty list of non-negative integers.", param=_FORWARDED)
    return token_ids


def _has_other_parts(request: ChatRequest) -> bool:
    """Whether a message has a part that is not text."""
    contents = [message.get("content") for message in request.messages]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return any(isinstance(part, dict) and part.get("type") not in TEXT_KEYS for part in parts)
