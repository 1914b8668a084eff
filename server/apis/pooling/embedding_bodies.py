"""Bodies of /v1/embeddings."""

from typing import Literal

import msgspec

from server.apis.pooling.request import Dimensions, VectorFields
from server.http_body.usage import Usage


class EmbeddingRequest(VectorFields, kw_only=True):
    """Texts, token ids or conversations to embed."""

    dimensions: Dimensions | None = None
    """Truncate embeddings to this length; only for models that were trained for it."""
    use_activation: bool | None = None
    """Whether to normalize embeddings to length one; null is the model's default."""


class EmbeddingData(msgspec.Struct, kw_only=True):
    """One embedding."""

    index: int
    object: Literal["embedding"] = "embedding"
    embedding: list[float] | str


class EmbeddingResponse(msgspec.Struct, kw_only=True):
    """The response, in the order of the inputs."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[EmbeddingData]
    usage: Usage
