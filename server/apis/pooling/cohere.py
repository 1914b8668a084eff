"""Answers /v2/embed, Cohere's API of embeddings."""

import base64
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from server.apis.pooling.base import PoolingServeContext, check_dimensions
from server.apis.pooling.embedding import EmbeddingServingBase
from server.apis.pooling.prompts import PromptReader
from server.apis.pooling.request import Dimensions, Truncatable
from server.apis.pooling.vectors import values_of
from server.errors import RequestError
from server.http_body.fields import INEFFECTIVE, Counted, Priority
from server.renderers.prompts import ChatOptions
from server.renderers.tokenizers.tokenizer import Encoded
from server.types import PoolingInfo, PoolingParams

_CHAT_OPTIONS = ChatOptions(add_generation_prompt=False)

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


class CohereEmbeddings(msgspec.Struct, omit_defaults=True):
    """The embeddings in each requested encoding."""

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


class CohereEmbeddingServing(EmbeddingServingBase[CohereEmbedRequest]):
    """One vector per input, in one or several encodings."""

    def _pooling_params(self, request: CohereEmbedRequest, info: PoolingInfo) -> PoolingParams:
        if request.has_images:
            raise RequestError("This model does not embed images; give `texts`.", param="images")
        _check_input_type(request.input_type, info.task_instructions)
        check_dimensions(request.output_dimension, info, self._models.default_name)
        return PoolingParams(task="embed", dimensions=request.output_dimension)

    def _read_prompts(self, ctx: PoolingServeContext[CohereEmbedRequest], reader: PromptReader) -> None:
        request = ctx.request
        instruction = ctx.info.task_instructions.get(request.input_type or "")
        if request.inputs is not None:
            texts = [[part.text for part in one.content if isinstance(part, CohereText)] for one in request.inputs]
            ctx.prompts = [_read_conversation(reader, parts, instruction) for parts in texts]
        elif instruction and self._renderer.chat_template is not None:
            ctx.prompts = [_read_conversation(reader, [text], instruction) for text in request.texts or ()]
        else:
            ctx.prompts = [reader.read((instruction or "") + text, param="texts") for text in request.texts or ()]
        _check_lengths(request, ctx.prompts)

    def _build_response(self, ctx: PoolingServeContext[CohereEmbedRequest]) -> bytes:
        request = ctx.request
        vectors = np.stack([values_of(output) for output in self._joined_outputs(ctx)])
        return msgspec.json.encode(
            CohereEmbedResponse(
                id=ctx.request_id,
                embeddings=_encode(vectors, request.embedding_types or ["float"]),
                texts=msgspec.UNSET if request.texts is None else request.texts,
                meta=CohereMeta(CohereBilledUnits(ctx.usage.prompt_tokens)),
            )
        )


def _read_conversation(reader: PromptReader, parts: list[str], instruction: str | None) -> Encoded:
    """The conversation of one input's texts; the instruction is its system message."""
    system = [] if instruction is None else [{"role": "system", "content": instruction}]
    return reader.read_conversation([*system, {"role": "user", "content": "\n".join(parts)}], _CHAT_OPTIONS)


def _check_input_type(input_type: str | None, instructions: dict[str, str]) -> None:
    if input_type is None or input_type in instructions:
        return
    known = f"Supported values: {', '.join(sorted(instructions))}"
    none = "This model does not define any input_type task instructions."
    raise RequestError(f"Unsupported input_type {input_type!r}. {known if instructions else none}", param="input_type")


def _check_lengths(request: CohereEmbedRequest, prompts: Sequence[Encoded]) -> None:
    """With `truncate` NONE, `max_tokens` rejects longer inputs."""
    if request.truncate != "NONE" or request.max_tokens is None:
        return
    for prompt in prompts:
        if len(prompt.token_ids) > request.max_tokens:
            raise RequestError(
                f"Input of {len(prompt.token_ids)} tokens exceeds max_tokens={request.max_tokens} with truncate=NONE. "
                "Set truncate to END or START to allow truncation.",
                param="max_tokens",
            )


def _encode(vectors: npt.NDArray[np.float32], kinds: Sequence[CohereEmbeddingType]) -> CohereEmbeddings:
    encoded = CohereEmbeddings()
    if "float" in kinds:
        encoded.float = [msgspec.Raw(msgspec.json.encode(row.tolist())) for row in vectors]
    if "base64" in kinds:
        encoded.base64 = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
    if "ubinary" in kinds or "binary" in kinds:
        bits = _pack_signs(vectors)
        if "ubinary" in kinds:
            encoded.ubinary = bits.tolist()
        if "binary" in kinds:
            encoded.binary = (bits.astype(np.int16) - 128).tolist()
    return encoded


def _pack_signs(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """One bit per number, set if it is not negative; the first is a byte's highest."""
    length = vectors.shape[1]
    if length % 8:
        raise RequestError(
            f"Embedding dimension must be a multiple of 8 for binary embedding types, but got {length}.",
            param="embedding_types",
        )
    return np.packbits(vectors >= 0, axis=-1)
