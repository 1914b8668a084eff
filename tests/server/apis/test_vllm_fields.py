"""Our requests, and our responses of /v1/responses, have every field of the installed vLLM's.

A new vLLM with new fields fails here.
"""

from pathlib import Path

import msgspec
import pytest

from server.apis.anthropic.messages_request import (
    AnthropicMessage,
    AnthropicRequest,
    ContentBlock,
    CountTokensRequest,
    JsonOutputFormat,
    OutputConfig,
    ToolChoice,
    ToolDefinition,
)
from server.apis.pooling.endpoints import ClassificationRequest, EmbeddingRequest, PoolingRequest
from server.apis.pooling.scoring import RerankRequest, ScoreRequest
from server.apis.responses.responses_request import ResponsesRequest
from server.apis.responses.serving import empty_response
from server.apis.tokenization import DetokenizeRequest, TokenizeRequest
from server.generation.generation_request import (
    ChatRequest,
    CompletionRequest,
    FunctionDefinition,
    JsonSchemaFormat,
    ResponseFormat,
    StreamOptions,
    StructuredOutputs,
    Tool,
)
from server.terms.http_body.request_body import _marked_fields
from server.terms.types import SamplingParams
from tests.support.peer_vllm import ask_vllm, needs_vllm

SCRIPT = Path(__file__).with_name("vllm_fields.py")
CHAT = "vllm.entrypoints.openai.chat_completion.protocol"
BASE = "vllm.entrypoints.generate.base.protocol"
POOLING = "vllm.entrypoints.pooling"
ANTHROPIC = "vllm.entrypoints.anthropic.protocol"
TOKENIZE = "vllm.entrypoints.serve.tokenize.protocol"
RESPONSES = "vllm.entrypoints.openai.responses.protocol"

PAIRS = {
    (CHAT, "ChatCompletionRequest"): ChatRequest,
    (CHAT, "ChatCompletionToolsParam"): Tool,
    (BASE, "StreamOptions"): StreamOptions,
    (BASE, "FunctionDefinition"): FunctionDefinition,
    (BASE, "AnyResponseFormat"): ResponseFormat,
    (BASE, "JsonSchemaResponseFormat"): JsonSchemaFormat,
    ("vllm.entrypoints.openai.completion.protocol", "CompletionRequest"): CompletionRequest,
    (RESPONSES, "ResponsesRequest"): ResponsesRequest,
    (f"{POOLING}.embed.protocol", "EmbeddingRequest"): EmbeddingRequest,
    (f"{POOLING}.pooling.protocol", "PoolingRequest"): PoolingRequest,
    (f"{POOLING}.classify.protocol", "ClassificationRequest"): ClassificationRequest,
    (f"{POOLING}.scoring.protocol", "ScoreRequest"): ScoreRequest,
    (f"{POOLING}.scoring.protocol", "RerankRequest"): RerankRequest,
    (ANTHROPIC, "AnthropicMessagesRequest"): AnthropicRequest,
    (ANTHROPIC, "AnthropicCountTokensRequest"): CountTokensRequest,
    (ANTHROPIC, "AnthropicMessage"): AnthropicMessage,
    (ANTHROPIC, "AnthropicContentBlock"): ContentBlock,
    (ANTHROPIC, "AnthropicTool"): ToolDefinition,
    (ANTHROPIC, "AnthropicToolChoice"): ToolChoice,
    (ANTHROPIC, "AnthropicOutputConfig"): OutputConfig,
    (ANTHROPIC, "AnthropicJsonOutputFormat"): JsonOutputFormat,
    (TOKENIZE, "TokenizeRequest"): TokenizeRequest,
    (TOKENIZE, "DetokenizeRequest"): DetokenizeRequest,
}

IGNORED = frozenset(
    """
    user metadata store service_tier session_id safety_identifier prompt_cache_key prompt_cache_options
    prompt_cache_retention include_obfuscation stream_options cache_salt return_token_offsets mm_payload
    return_mm_kwargs watermarking priority
    kv_transfer_params ec_transfer_params vllm_xargs repetition_detection best_of
    routed_experts_prompt_start return_documents max_chunks_per_doc rank_fields disable_additional_properties
    is_error signature data return_weight_versions
    """.split()  # noqa: SIM905
)
"""Hints, and settings that the embedded engine lacks. Requests that do not declare them ignore them."""

_TAGS = dict.fromkeys(("format", "structures", "triggers"), "of structural tags, which need --engine vllm")
_MESSAGES = dict.fromkeys(
    ("add_generation_prompt", "continue_final_message", "chat_template", "chat_template_kwargs"),
    "for the messages of pooling requests, which need --engine vllm",
)
_BEAMS = {"length_penalty": "for beam search, which the embedded engine lacks"}
_SINCE_0_33 = {"prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier"}
"""Fields of a response that older releases lack."""
WITHOUT = {
    "AnyResponseFormat": _TAGS,
    "EmbeddingRequest": _MESSAGES,
    "ClassificationRequest": _MESSAGES,
    "AnthropicContentBlock": {"tool": "for changes of the tools within a conversation, which are a 400"},
    "ChatCompletionRequest": _BEAMS,
    "CompletionRequest": _BEAMS,
    "PoolingRequest": _MESSAGES | {"data": "for vLLM's IO processor plugins, which the embedded engine does not load"},
}
"""Request -> fields that are ignored as unknown -> the reason."""


@pytest.mark.slow
@needs_vllm
def test_every_field_of_vllm_is_declared(tmp_path):
    theirs = ask_vllm(SCRIPT, [*PAIRS, (RESPONSES, "ResponsesResponse")], tmp_path)
    missing = {}
    for (_, name), ours in PAIRS.items():
        declared = {field.encode_name for field in msgspec.structs.fields(ours)} | WITHOUT.get(name, {}).keys()
        assert len(theirs[name]) > 0
        if lacking := set(theirs[name]) - declared - IGNORED:
            missing[name] = lacking
    assert missing == {}
    response = empty_response(ResponsesRequest(input="a"), SamplingParams(max_tokens=1), "m")
    others = {"metrics"}  # with --enable-per-request-metrics only
    assert set(theirs["ResponsesResponse"]) - others == response.keys() - (
        _SINCE_0_33 - set(theirs["ResponsesResponse"])
    )


def test_every_refused_field_of_a_request_is_in_the_documentation():
    text = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
    refused = {name for kind in PAIRS.values() for name, _, is_ignored in _marked_fields(kind) if not is_ignored}
    refused |= {name for name, _, _ in _marked_fields(StructuredOutputs)}
    assert {"echo", "return_prompt_text", "whitespace_pattern"} < refused
    assert [name for name in sorted(refused) if f"`{name}`" not in text and not name.startswith("guided_")] == []
