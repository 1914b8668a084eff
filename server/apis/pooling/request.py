"""The fields that the requests of all pooling endpoints share, with vLLM's names and defaults."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from msgspec import Meta

from base.errors import RequestError
from server.terms.http_body.request_body import (
    Counted,
    RequestBody,
    RequestId,
    Truncation,
    Unsupported,
    check_unsupported,
)

EncodingFormat = Literal["float", "base64", "bytes", "bytes_only"]
Dimensions = Annotated[int, Meta(ge=1)]
AnyTokenId = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""A token id that is later compared with the model's vocabulary."""


class PoolingFields(RequestBody, kw_only=True):
    """The base of all requests to pooling endpoints."""

    model: str | None = None
    truncate_prompt_tokens: Truncation | None = None
    truncation_side: Literal["left", "right"] | None = None
    """The side on which tokens are cut off. `right`, the default here, keeps the first tokens."""
    padding: Unsupported = "do_not_pad"
    request_id: RequestId | None = None
    mm_processor_kwargs: Unsupported = None
    use_activation: bool | None = None
    """Whether to normalize embeddings to length one, or return probabilities. Null: the model's default."""
    normalize: Any = None

    def __post_init__(self) -> None:
        check_unsupported(self)
        if self.normalize is not None:
            raise RequestError("Parameter `normalize` was removed; use `use_activation` instead.", param="normalize")


class InputFields(PoolingFields, kw_only=True):
    """The base of requests with texts or token ids."""

    input: str | list[AnyTokenId | str | list[AnyTokenId]] | None = None
    add_special_tokens: bool | None = None
    """False leaves special tokens out. True and null add them."""
    messages: Unsupported = None
    media_io_kwargs: Unsupported = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.input is None:
            raise RequestError("Missing required parameter: 'input'.", param="input")
        if self.input == []:
            raise RequestError("You must pass at least one prompt: `input` is empty.", param="input")
        if isinstance(self.input, list) and len({type(member) for member in self.input}) > 1:
            raise RequestError("`input` must hold texts, token ids, or lists of token ids, not a mix.", param="input")

    @property
    def num_sequences(self) -> int:
        return len(self.prompts)

    def counted(self) -> Iterator[Counted]:
        yield Counted("max_prompts", "input", self.num_sequences)

    @property
    def prompts(self) -> list[str | list[int]]:
        assert self.input is not None
        if isinstance(self.input, str) or isinstance(self.input[0], int):
            return [self.input]  # type: ignore[list-item]
        return self.input  # type: ignore[return-value]


class VectorFields(InputFields, kw_only=True):
    """The base of requests for vectors, with the encoding of the vectors."""

    encoding_format: EncodingFormat = "float"
    """`base64` encodes the bytes of float32. vLLM also has `bytes` and `bytes_only`."""
    embed_dtype: Unsupported = "float32"
    endianness: Unsupported = "native"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoding_format not in ("float", "base64"):
            raise RequestError(
                f"`encoding_format` {self.encoding_format} needs `--engine vllm`. The embedded engine has float and "
                "base64.",
                param="encoding_format",
            )
