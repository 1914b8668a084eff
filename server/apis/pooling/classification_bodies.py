"""Bodies of /classify."""

from typing import Literal

import msgspec

from server.apis.pooling.request import InputFields
from server.http_body.usage import Usage


class ClassificationRequest(InputFields, kw_only=True):
    """Texts, token ids or conversations to classify."""

    use_activation: bool | None = None
    """Whether to return probabilities; false returns logits."""


class ClassificationData(msgspec.Struct, kw_only=True):
    """The classes of one input."""

    index: int
    label: str | None
    probs: list[float]
    num_classes: int


class ClassificationResponse(msgspec.Struct, kw_only=True):
    """The response, in the order of the inputs."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ClassificationData]
    usage: Usage
