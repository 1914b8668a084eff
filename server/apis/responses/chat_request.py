"""Turns a request to /v1/responses into a chat request."""

from collections.abc import Iterator
from contextlib import contextmanager

from server.apis.responses.conversation import Message, continues_message
from server.apis.responses.request import ResponsesRequest, TextFormat
from server.apis.responses.tools import ResponseTools
from server.errors import RequestError
from server.generation.chat_request import ChatRequest
from server.generation.request import JsonSchemaFormat, ResponseFormat

_FIELDS = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "logprobs": "top_logprobs",
}
"""Field of a chat request -> field of a request to /v1/responses."""


def to_chat_request(request: ResponsesRequest, messages: list[Message], tools: ResponseTools) -> ChatRequest:
    """The chat request with the same answer; values were checked when the request was decoded."""
    continues = continues_message(request.items)
    return ChatRequest(
        model=request.model,
        messages=messages,
        stream=request.stream,
        max_completion_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=request.repetition_penalty,
        seed=request.seed,
        stop=request.stop,
        stop_token_ids=request.stop_token_ids,
        include_stop_str_in_output=request.include_stop_str_in_output,
        ignore_eos=request.ignore_eos,
        logit_bias=request.logit_bias,
        skip_special_tokens=request.skip_special_tokens,
        logprobs=request.num_logprobs is not None,
        top_logprobs=request.num_logprobs,
        truncate_prompt_tokens=-1 if request.truncation == "auto" else None,
        cache_salt=request.cache_salt,
        response_format=_response_format(None if request.text is None else request.text.format),
        structured_outputs=request.structured_outputs,
        tools=tools.functions or None,
        tool_choice=tools.choice,
        parallel_tool_calls=request.parallel_tool_calls,
        reasoning_effort=None if request.reasoning is None else request.reasoning.effort,
        include_reasoning=request.include_reasoning,
        add_generation_prompt=not continues,
        continue_final_message=continues,
        kv_transfer_params=request.kv_transfer_params,
        chat_template_kwargs=request.chat_template_kwargs,
        mm_processor_kwargs=request.mm_processor_kwargs,
    )


@contextmanager
def own_field_names() -> Iterator[None]:
    """Errors of the chat request get the names of this API's fields."""
    try:
        yield
    except RequestError as err:
        for chat_name, own_name in _FIELDS.items():
            err.message = err.message.replace(f"`{chat_name}`", f"`{own_name}`")
            err.message = err.message.replace(f"{chat_name}=", f"{own_name}=")
        err.param = _FIELDS.get(err.param or "", err.param)
        raise


def _response_format(wanted: TextFormat | None) -> ResponseFormat | None:
    if wanted is None:
        return None
    if wanted.type != "json_schema":
        return ResponseFormat(type=wanted.type)
    named = JsonSchemaFormat(
        name=str(wanted.name), description=wanted.description, schema=wanted.schema, strict=wanted.strict
    )
    return ResponseFormat(type="json_schema", json_schema=named)
