"""Decodes a request's body and checks the limits of one request; every failure is a 400 that names it."""

import re
from typing import Generic, TypeVar

import msgspec

from server.errors import RequestError
from server.http_body.fields import RequestBody
from server.http_body.long_texts import shorten
from server.http_body.nesting import NestingCheck
from server.limits import LimitsConfig, flag_of

T = TypeVar("T", bound=RequestBody)

_PLACE = re.compile(r"(?:`key` in )?`\$\.?(.*)`", re.DOTALL)
_MISSING_FIELD = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_NUMBERS = {b"true": msgspec.Raw(b"1"), b"false": msgspec.Raw(b"0")}
_MAX_SHOWN = 200

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
        self._lenient = msgspec.json.Decoder(model, strict=False)

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
            raise _explain(str(err)) from err
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
            members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        numbers = {name: _NUMBERS.get(bytes(value), value) for name, value in members.items()}
        return self._lenient.decode(msgspec.json.encode(numbers))


def check_limits(request: RequestBody, limits: LimitsConfig) -> None:
    """Raises RequestError if the request exceeds a limit; the message names limit, value and flag."""
    for limit, param, number in request.counted():
        most = getattr(limits, limit)
        if number > most:
            what = "must be at most {} for all prompts together" if param == "n" else "may have at most {} members"
            raise RequestError(f"`{param}` {what.format(most)}, got {number} ({flag_of(limit)}).", param=param)


def _explain(error: str) -> RequestError:
    """msgspec's sentence, and the field that it is about."""
    what, _, place = error.rpartition(" - at ")
    located = _PLACE.fullmatch(place)
    what, path = (what, located[1]) if located else (error, "")
    if missing := _MISSING_FIELD.fullmatch(what):
        name = f"{path}.{missing[1]}" if path else missing[1]
        return RequestError(f"Missing required parameter: '{name}'.", param=name)
    shown = what if len(what) <= _MAX_SHOWN else what[:_MAX_SHOWN] + "…"
    if not path:
        return RequestError(f"The request body must be a JSON object: {shown}.")
    return RequestError(f"Invalid value for `{path}`: {shown}.", param=path.partition("[")[0])
