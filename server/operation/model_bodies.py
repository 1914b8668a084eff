"""Bodies of /v1/models."""

import msgspec


class ModelPermission(msgspec.Struct, kw_only=True):
    """OpenAI's old field for a key's permissions; the same for all models."""

    id: str
    object: str = "model_permission"
    created: int
    allow_create_engine: bool = False
    allow_sampling: bool = True
    allow_logprobs: bool = True
    allow_search_indices: bool = False
    allow_view: bool = True
    allow_fine_tuning: bool = False
    organization: str = "*"
    group: str | None = None
    is_blocking: bool = False


class ModelCard(msgspec.Struct, kw_only=True):
    """One served model name."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "vllm"
    root: str
    parent: str | None = None
    max_model_len: int | None
    """None for LoRA adapters, as in vLLM."""
    permission: list[ModelPermission]


class ModelList(msgspec.Struct, kw_only=True):
    """All served model names."""

    object: str = "list"
    data: list[ModelCard]
