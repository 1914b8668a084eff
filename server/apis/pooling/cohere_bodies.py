"""Bodies of /v2/embed, Cohere's API of embeddings."""

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from server.apis.pooling.request import Conversation, Dimensions, Truncatable
from server.errors import RequestError
from server.http_body.fields import INEFFECTIVE, Counted, Priority

CohereEmbeddingType = Literal["float", "binary", "ubinary", "base64"]


class CohereText(msgspec.Struct, tag_field="type", tag="text"):
    """A part of an input."""

    text: str


class CohereImageUrl(msgspec.Struct):
    """Where an image is."""

    url: Annotated[str, Meta(min_length=1)]


class CohereImage(msgspec.Struct, tag_field="type", tag="image_url"):
    """A part of an input."""

    image_url: CohereImageUrl


class CohereInput(msgspec.Struct):
    """One input of several parts."""

    content: list[CohereText | CohereImage]


class CohereEmbedRequest(Truncatable, kw_only=True):
    """Texts or images to embed."""

    input_type: str | None = None
    """The key of a text that the model's files define, to be put before each input."""
    texts: list[str] | None = None
    images: list[str] | None = None
    inputs: list[CohereInput] | None = None
    output_dimension: Dimensions | None = None
    embedding_types: list[CohereEmbeddingType] | None = None
    """The encodings of the response; null is `float`."""
    truncate: Literal["NONE", "START", "END"] = "END"
    """The end of a long input that is cut off."""
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    """Most tokens of an input; null is the model's context."""
    priority: Annotated[Priority, INEFFECTIVE] = 0

    def __post_init__(self) -> None:
        given = [field for field in (self.texts, self.images, self.inputs) if field is not None]
        if len(given) != 1 or not self.given:
            raise RequestError(
                "Exactly one of texts, images, or inputs must be provided, and it must be non-empty", param="texts"
            )
        if self.truncate != "NONE":
            self.truncate_prompt_tokens = -1 if self.max_tokens is None else self.max_tokens
            self.truncation_side = "left" if self.truncate == "START" else "right"

    @property
    def num_sequences(self) -> int:
        return len(self.given)

    def counted(self) -> Iterator[Counted]:
        yield Counted("max_prompts", "texts", len(self.given))

    @property
    def given(self) -> list[str] | list[CohereInput]:
        """The inputs."""
        return self.texts or self.images or self.inputs or []

    @property
    def has_images(self) -> bool:
        """Whether an input is an image or has one."""
        parts = [part for one in self.inputs or () for part in one.content]
        return self.images is not None or any(isinstance(part, CohereImage) for part in parts)


def to_conversation(parts: list[str], instruction: str | None) -> Conversation:
    """The conversation of one input's texts; the instruction is its system message."""
    system = [] if instruction is None else [{"role": "system", "content": instruction}]
    return [*system, {"role": "user", "content": "\n".join(parts)}]


class CohereEmbeddings(msgspec.Struct, omit_defaults=True):
    """The embeddings in each encoding that was asked for."""

    float: list[msgspec.Raw] | None = None
    binary: list[list[int]] | None = None
    ubinary: list[list[int]] | None = None
    base64: list[str] | None = None


class CohereApiVersion(msgspec.Struct):
    """Cohere's version of the API."""

    version: str = "2"


class CohereBilledUnits(msgspec.Struct):
    """Token counts."""

    input_tokens: int
    image_tokens: int = 0


class CohereMeta(msgspec.Struct):
    """What belongs to the whole response."""

    billed_units: CohereBilledUnits
    api_version: CohereApiVersion = msgspec.field(default_factory=CohereApiVersion)


class CohereEmbedResponse(msgspec.Struct, kw_only=True):
    """The response, in the order of the inputs."""

    id: str
    embeddings: CohereEmbeddings
    texts: list[str] | msgspec.UnsetType = msgspec.UNSET
    meta: CohereMeta
    response_type: Literal["embeddings_by_type"] = "embeddings_by_type"
