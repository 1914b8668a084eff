"""Renders with vLLM's own code for Mistral's formats; run by vLLM's own interpreter, for test_mistral_chat.

`python vllm_mistral.py WORK ANSWERS`: WORK maps a kind of tokenizer to its folder, bodies, texts and streams.
"""

import json
import sys
from pathlib import Path
from typing import Any

import mistral_common
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.renderers.mistral import safe_apply_chat_template
from vllm.tokenizers.detokenizer_utils import detokenize_incrementally
from vllm.tokenizers.mistral import MistralTokenizer, maybe_serialize_tool_calls, truncate_tool_call_ids


def answer(work: dict[str, Any]) -> dict[str, Any]:
    tokenizer = MistralTokenizer.from_pretrained(work["folder"])
    return {
        "prompts": [render(tokenizer, body) for body in work["bodies"]],
        "texts": [tokenizer.encode(text) for text in work["texts"]],
        "streams": [stream(tokenizer, *pair) for pair in work["streams"]],
    }


def render(tokenizer: Any, body: dict[str, Any]) -> list[int] | str:
    """As `vllm.renderers.online_renderer` does; returns the error message if vLLM rejects the body."""
    request = ChatCompletionRequest(model="m", **body)
    maybe_serialize_tool_calls(request)
    truncate_tool_call_ids(request)
    tools = [tool.model_dump() for tool in request.tools] if request.tools else None
    names = ("add_generation_prompt", "continue_final_message", "reasoning_effort")
    options = {name: getattr(request, name) for name in names}
    try:
        return safe_apply_chat_template(tokenizer, request.messages, tools=tools, **options)
    except ValueError as err:
        return str(err)


def stream(tokenizer: Any, prompt: list[int], output: list[int]) -> str:
    ids, tokens, start, end, text = list(prompt), None, 0, 0, ""
    for token_id in output:
        ids.append(token_id)
        new, piece, start, end = detokenize_incrementally(tokenizer, ids, tokens, start, end, skip_special_tokens=True)
        tokens = new if tokens is None else tokens + new
        text += piece
    return text


if __name__ == "__main__":
    answers = {kind: answer(work) for kind, work in json.loads(Path(sys.argv[1]).read_text()).items()}
    Path(sys.argv[2]).write_text(json.dumps([mistral_common.__version__, answers]))
