"""Decodes bodies of requests, and checks ranges and limits. A fault is a 400 that names the field."""

import codecs
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from base.errors import RequestError
from base.json_depth import JsonDepthError, check_depth, count, split_json
from server.terms.limits import LimitsConfig, flag_of

logger = logging.getLogger(__name__)

INT32_MAX = 2**31 - 1
_EMPTY: tuple[Any, ...] = ([], {})
_GUIDED = "guided_"

Ignored = Annotated[Any, Meta(extra={"support": "ignored"})]
"""A field that has no effect, as in vLLM, although clients may expect one. Its first use is logged. Fields
that are not declared have no effect either, and are not logged."""

Unsupported = Annotated[Any, Meta(extra={"support": "unsupported"})]
"""A field that would change the answer. Any value except null, an empty value or the default is rejected
with a 400."""

TokenId = Annotated[int, Meta(ge=0, le=INT32_MAX)]
TokenCount = TokenId
OutputLimit = Annotated[int, Meta(ge=1, le=INT32_MAX)]
NumChoices = Annotated[int, Meta(ge=1, le=INT32_MAX)]
"""The field `n`. The operator's limit is checked later (`RequestBody.counted`)."""
NumLogprobs = Annotated[int, Meta(ge=-1, le=INT32_MAX)]
Truncation = Annotated[int, Meta(ge=-1, le=INT32_MAX)]
"""The number of prompt tokens to keep. -1 keeps as many as the model accepts."""
Temperature = Annotated[float, Meta(ge=0, le=2)]
TopP = Annotated[float, Meta(gt=0, le=1)]
TopK = Annotated[int, Meta(ge=-1, le=INT32_MAX, extra={"range": "0 (disable), or 1 to 2147483647"})]
MinP = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
RepetitionPenalty = Annotated[float, Meta(gt=0)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Text = Annotated[str, Meta(min_length=1)]
Stop = Text | list[Text]
CacheSalt = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^@/\\\x00]*$")]
"""A cache salt. It has vLLM's limits, because vLLM's caches use the salt in paths."""
RequestId = Annotated[str, Meta(max_length=256, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+(?!\n)$")]
"""A request id. It has no control characters or line breaks, because it is logged and must not look like
another log line."""

Messages = Annotated[list[dict[str, Any]], Meta(min_length=1)]
"""Messages of a chat, not checked yet. The renderer checks roles and content parts."""
_PLACE = re.compile(r"(?:`key` in )?`\$\.?(.*)`", re.DOTALL)
_MISSING_FIELD = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_OUT_OF_RANGE = re.compile(r"Expected `(?:int|float)` [<>]")
_NUMBERS = {b"true": msgspec.Raw(b"1"), b"false": msgspec.Raw(b"0")}
_MAX_SHOWN = 200
_OTHER_ENCODINGS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, b"\0")
"""The first bytes of JSON that is not plain UTF-8. Such JSON may also have a null as second byte (RFC 4627,
section 3)."""


class Counted(NamedTuple):
    """A number in a request that the operator limits."""

    limit: str
    """The field of `LimitsConfig` with the limit."""
    param: str
    """The field of the request."""
    number: int


class RequestBody(msgspec.Struct):
    """The base class of all requests."""

    @property
    def num_sequences(self) -> int:
        """The number of sequences that the engine runs for the request, at least 1."""
        return 1

    def counted(self) -> Iterable[Counted]:
        """Returns the numbers in the request that the operator limits."""
        return ()


def check_unsupported(request: msgspec.Struct) -> None:
    """Raises RequestError for the first unsupported field whose value is not null, empty or its default."""
    for name, default, is_ignored in _marked_fields(type(request)):
        value = getattr(request, name)
        if value is None or value == default or value in _EMPTY:
            continue
        if name.startswith(_GUIDED):
            text = f"vLLM has replaced `{name}` by `structured_outputs.{name.removeprefix(_GUIDED)}`."
            raise RequestError(text, param=name)
        if not is_ignored:
            raise RequestError(f"`{name}` needs `--engine vllm`. Leave it out for the embedded engine.", param=name)
        _warn(name)


@cache
def _marked_fields(model: type[msgspec.Struct]) -> tuple[tuple[str, Any, bool], ...]:
    fields = msgspec.structs.fields(model)
    marked = [field for field in fields if field.type in (Ignored, Unsupported)]
    return tuple((field.name, field.default, field.type == Ignored) for field in marked)


@cache
def _warn(name: str) -> None:
    logger.warning("the request field %r has no effect, as in vLLM. This is logged once", name)


def check_generation_prompt(add_generation_prompt: bool | None, continue_final_message: bool) -> None:
    """Raises RequestError if the request asks both to continue the last message and to begin a new one."""
    if continue_final_message and add_generation_prompt:
        raise RequestError(
            "Cannot set both `continue_final_message` and `add_generation_prompt` to true.",
            param="add_generation_prompt",
        )


def opens_message(add_generation_prompt: bool | None, continue_final_message: bool) -> bool:
    """Whether the template opens a new message. It does by default unless the last message is continued."""
    return not continue_final_message if add_generation_prompt is None else add_generation_prompt


T = TypeVar("T", bound=RequestBody)


class RequestDecoder(Generic[T]):
    """Decodes requests of one kind within the operator's limits. A route has one decoder for all requests."""

    def __init__(self, model: type[T], limits: LimitsConfig | None = None) -> None:
        self._model = model
        self._limits = limits or LimitsConfig()
        self._decoder = msgspec.json.Decoder(model)
        self._lenient = msgspec.json.Decoder(model, strict=False)

    def decode(self, body: bytes) -> T:
        """Decodes a body.

        Raises:
            RequestError: the body is not JSON or exceeds a limit, or a field is missing, of another type or
                out of range.
        """
        if body.startswith(_OTHER_ENCODINGS) or body[1:2] == b"\0":
            body = _to_utf8(body)
        check_num_values(body, self._limits.max_json_values)
        try:
            check_depth(body)
            request = self._decode_values(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as err:
            raise RequestError(f"The request body is not valid JSON: {err}") from err
        except JsonDepthError as err:
            raise RequestError(f"The request body is {err}.") from err
        check_limits(request, self._limits)
        return request

    def _decode_values(self, body: bytes) -> T:
        """Decodes a body. If that fails, follows vLLM's rules: a text or boolean may stand for a number."""
        members: dict[str, msgspec.Raw] = {}
        try:
            try:
                return self._decoder.decode(body)
            except msgspec.ValidationError:
                members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
            numbers = {name: _NUMBERS.get(bytes(value), value) for name, value in members.items()}
            return self._lenient.decode(msgspec.json.encode(numbers))
        except msgspec.ValidationError as err:
            raise _explain(str(err), self._model, members) from err


def _to_utf8(body: bytes) -> bytes:
    """Returns the body in UTF-8, without a byte order mark."""
    try:
        return body.decode(json.detect_encoding(body)).encode()
    except UnicodeError as err:
        raise RequestError(f"The request body is not valid JSON: {err}") from err


def check_num_values(body: bytes, most: int) -> None:
    """Raises RequestError for a body with too many values. Three bytes of JSON may take sixty in memory.

    Each value except the first follows a comma or an opening bracket, so the function counts these. If the
    count is too high, it counts again without commas and brackets in texts.
    """
    if len(body) <= most or count(body, b",[{") < most:
        return
    num_values, num_quotes = 1, 0
    for piece in split_json(body):
        num_values += piece.marks.count(b",") + piece.marks.count(b"[")
        num_quotes += piece.num_quotes
        if max(num_values, num_quotes // 2) > most:
            raise RequestError(
                f"The request body has more than {most} objects, lists, texts and numbers "
                f"({flag_of('max_json_values')})."
            )


def check_limits(request: RequestBody, limits: LimitsConfig) -> None:
    """Raises RequestError if the request exceeds a limit. The message names limit, value and flag."""
    for limit, param, number in request.counted():
        most = getattr(limits, limit)
        if number > most:
            what = "must be at most {} for all prompts together" if param == "n" else "may have at most {} members"
            raise RequestError(f"`{param}` {what.format(most)}, got {number} ({flag_of(limit)}).", param=param)


@contextmanager
def field_names(own: Mapping[str, str]) -> Iterator[None]:
    """Within the block, errors name the fields of another API. `own`: field of a chat -> that API's field."""
    try:
        yield
    except RequestError as err:
        for chat_name, own_name in own.items():
            err.message = err.message.replace(f"`{chat_name}`", f"`{own_name}`")
            err.message = err.message.replace(f"{chat_name}=", f"{own_name}=")
        err.param = own.get(err.param or "", err.param)
        raise


def _explain(error: str, model: type[msgspec.Struct], members: dict[str, msgspec.Raw]) -> RequestError:
    """Turns msgspec's error into a RequestError with the field's name and, for numbers, the allowed range."""
    what, _, place = error.rpartition(" - at ")
    located = _PLACE.fullmatch(place)
    what, path = (what, located[1]) if located else (error, "")
    if missing := _MISSING_FIELD.fullmatch(what):
        name = f"{path}.{missing[1]}" if path else missing[1]
        return RequestError(f"Missing required parameter: '{name}'.", param=name)
    if not path:
        return RequestError(f"The request body must be a JSON object: {_shortened(what)}.")
    if place.startswith("`key`") and path in members:
        keys = msgspec.json.decode(members[path], type=dict[str, Any])
        words = [repr(key) for key in keys if not key.removeprefix("-").isdecimal()]
        return RequestError(f"`{path}` has keys that are not token ids: {_shortened(', '.join(words))}.", param=path)
    if _OUT_OF_RANGE.match(what) and (allowed := _ranges(model).get(path)):
        got = _shortened(bytes(members[path]).decode())
        return RequestError(f"`{path}` must be {allowed}, got {got}.", param=path)
    return RequestError(f"Invalid value for `{path}`: {_shortened(what)}.", param=path.partition("[")[0])


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"


@cache
def _ranges(model: type[msgspec.Struct]) -> dict[str, str]:
    """Name of a field with a number -> its range in words."""
    fields = msgspec.inspect.type_info(model).fields  # type: ignore[attr-defined]
    ranges: dict[str, str] = {}
    for field in fields:
        for kind in getattr(field.type, "types", (field.type,)):
            allowed = _range_of(kind)
            if allowed is not None:
                ranges[field.encode_name] = allowed
    return ranges


def _range_of(kind: msgspec.inspect.Type) -> str | None:
    if isinstance(kind, msgspec.inspect.Metadata):
        return (kind.extra or {}).get("range") or _range_of(kind.type)
    if not isinstance(kind, msgspec.inspect.IntType | msgspec.inspect.FloatType):
        return None
    if kind.le is None:
        return f"greater than {kind.gt}" if kind.ge is None else f"at least {kind.ge}"
    return f"in {f'({kind.gt}' if kind.ge is None else f'[{kind.ge}'}, {kind.le}]"
