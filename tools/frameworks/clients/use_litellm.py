"""LiteLLM: its provider `hosted_vllm`, which is its default for vLLM."""

from functools import partial

import litellm
from chat_features import Features
from scenario import MODEL, base_url, report

COMPLETE = partial(litellm.completion, model=f"hosted_vllm/{MODEL}", api_base=f"{base_url()}/v1", api_key="none")
FEATURES = Features(COMPLETE)

report(
    text=FEATURES.text,
    stream=FEATURES.stream,
    structured=FEATURES.structured,
    tools=FEATURES.tools,
    loop=FEATURES.loop,
)
