"""Decodes a request's body and checks the limits of one request; every failure is a 400 that names it."""

import re
from typing import Any, Generic, TypeVar

import msgspec

from server.errors import RequestError
from server.http_body.fields import RequestBody
from server.http_body.long_texts import shorten
from server.http_body.nesting import NestingCheck
from server.limits import LimitsConfig, flag_of

T = TypeVar("T", bound=RequestBody)

_PATH = re.compile(r"(?:`key` in )?`\$\.?(.*)`", re.DOTALL)
_MISSING_FIELD = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_BOUND = re.compile(r"Expected `(?:int|float)` (?P<relation>[<>]=?) .*")
_ERROR_OF_BOUND = {"<": "less_than", "<=": "less_than_equal", ">": "greater_than", ">=": "greater_than_equal"}
"""Pydantic's names of errors, which vLLM's messages have."""
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")
_MAX_SHOWN = 100

_LARGE_BYTES = 1 << 20
"""Decoding a body of this size takes less than a millisecond."""


class RequestDecoder(Generic[T]):
    """Decodes one kind of request; one instance serves all requests of a route.

    Args:
        model: the request's struct.
        long_field: a field whose texts may be tens of megabytes; these are decoded as memoryviews of the
            body.
        limits: the operator's limits of one request.
    """

    def __init__(self, model: type[T], long_field: str | None = None, limits: LimitsConfig | None = None) -> None:
        self.model = model
        self._long_field = long_field
        self._limits = limits or LimitsConfig()
        self._nesting = NestingCheck(self._limits)
        self._decoder = msgspec.json.Decoder(model)

    def decode(self, body: bytes) -> T:
        """Decodes a body.

        Raises:
            RequestError: the body is not JSON or exceeds a limit, or a field is missing, of another type or
                out of range.
        """
        if self._long_field is None or len(body) < _LARGE_BYTES:
            return self._decode(body)
        short = shorten(body, self._long_field)
        request = self._decode(short.body)
        if short.texts:
            setattr(request, self._long_field, short.restore(getattr(request, self._long_field)))
        return request

    def _decode(self, body: bytes) -> T:
        self._nesting.check(body)
        try:
            request = self._decode_values(body)
        except msgspec.ValidationError as err:
            raise self._explain(str(err), body) from err
        except (msgspec.DecodeError, UnicodeDecodeError) as err:
            raise RequestError(f"The request body is not valid JSON: {err}") from err
        except RecursionError as err:
            raise RequestError("The request body is nested too deeply.") from err
        check_limits(request, self._limits)
        return request

    def _decode_values(self, body: bytes) -> T:
        """Decodes a body; if that fails, again as vLLM does, whose numbers may be texts or booleans."""
        try:
            return self._decoder.decode(body)
        except msgspec.ValidationError:
            members = msgspec.json.decode(body)
            if not isinstance(members, dict):
                raise
        numbers = {name: int(value) if isinstance(value, bool) else value for name, value in members.items()}
        return msgspec.convert(numbers, self.model, strict=False)

    def _explain(self, error: str, body: bytes) -> RequestError:
        what, _, place = error.rpartition(" - at ")
        located = _PATH.fullmatch(place)
        what, path = (what, located[1]) if located else (error, "")
        if missing := _MISSING_FIELD.fullmatch(what):
            name = _join(path, missing[1])
            return RequestError(f"Missing required parameter: '{name}'.", param=name)
        if not path:
            return RequestError(f"The request body must be a JSON object: {_uncapitalize(what)}.")
        if what.startswith("Invalid enum value"):
            what = f"Expected one of {', '.join(self._choices(path))} (literal_error)"
        elif bound := _BOUND.fullmatch(what):
            what = f"{what} ({_ERROR_OF_BOUND[bound['relation']]})"
        return RequestError(
            f"Invalid value for `{path}`: {_uncapitalize(what)}{_describe_value(what, path, body)}.",
            param=path.partition("[")[0],
        )

    def _choices(self, path: str) -> list[str]:
        """The allowed values of an enum field, from the struct's schema."""
        (schema,), components = msgspec.json.schema_components([self.model])
        for name, _ in _STEP.findall(path):
            schema = next(found for part in _alternatives(schema, components) if (found := _member(part, name)))
        return [f"'{word}'" for part in _alternatives(schema, components) for word in part.get("enum", ())]


def check_limits(request: RequestBody, limits: LimitsConfig) -> None:
    """Raises RequestError if the request exceeds a limit; the message names limit, value and flag."""
    for limit, param, number in request.counted():
        most = getattr(limits, limit)
        if number > most:
            what = "must be at most {} for all prompts together" if param == "n" else "may have at most {} members"
            raise RequestError(f"`{param}` {what.format(most)}, got {number} ({flag_of(limit)}).", param=param)


def _alternatives(schema: dict[str, Any], components: dict[str, Any]) -> list[dict[str, Any]]:
    """The members of a union, with references resolved."""
    if "$ref" in schema:
        schema = components[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        return [part for member in schema["anyOf"] for part in _alternatives(member, components)]
    return [schema]


def _member(schema: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The schema of an object's field, or of a list's members if `name` is empty."""
    found = schema.get("properties", {}).get(name) if name else schema.get("items")
    return found if isinstance(found, dict) else None


def _describe_value(what: str, path: str, body: bytes) -> str:
    """The invalid value, found by decoding the body again, which happens for errors only."""
    try:
        value: Any = msgspec.json.decode(body)
        for name, index in _STEP.findall(path):
            value = value[name] if name else value[int(index)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError):
        return ""  # the rest of the body may be invalid JSON, and members of a mapping have no path
    shown = _shorten(msgspec.json.encode(value).decode())
    return f" {shown}" if "got `" in what else f", got {shown}"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"


def _uncapitalize(text: str) -> str:
    return text[:1].lower() + text[1:]
