"""LiteLLM: its provider `hosted_vllm`, which is its default for vLLM."""

from functools import partial

import litellm
from chat_features import Features
from scenario import MODEL, base_url, report_all

COMPLETE = partial(litellm.completion, model=f"hosted_vllm/{MODEL}", api_base=f"{base_url()}/v1", api_key="none")

report_all(Features(COMPLETE))
