"""Why a result may differ from vLLM's. In each case, vLLM 0.32 loses text or misreads it.

The outputs are truncated or damaged, or have text around calls in formats that `formats.py` names.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from tests.server.text.parsers.parsed import Parsed, ParsedCall


class Difference(NamedTuple):
    """A kind of difference. The first kind in `DIFFERENCES` that holds is the reason."""

    reason: str
    holds: Callable[[Parsed, Parsed], bool]
    """Whether this kind explains our result and one of vLLM's, for the whole text or streamed."""
    formats: Sequence[str] = ()
    """The formats with this kind. Empty means all formats."""


def reason_of_difference(name: str, ours: Parsed, vllm: Sequence[Parsed]) -> str | None:
    """The reason for a difference from vLLM's results. None if no kind explains it."""
    for difference in DIFFERENCES:
        applies = not difference.formats or name in difference.formats
        if applies and any(difference.holds(ours, theirs) for theirs in vllm):
            return difference.reason
    return None


def _loses_text(ours: Parsed, theirs: Parsed) -> bool:
    return _meanings(ours) == _meanings(theirs) and _has_all_text(ours, theirs)


def _loses_arguments(ours: Parsed, theirs: Parsed) -> bool:
    return (
        _has_all_text(ours, theirs)
        and len(ours.calls) == len(theirs.calls)
        and all(_has_all_arguments(call, other) for call, other in zip(ours.calls, theirs.calls, strict=True))
    )


def _makes_call_of_incomplete_header(ours: Parsed, theirs: Parsed) -> bool:
    more = theirs.calls[len(ours.calls) :]
    return bool(more) and _meanings(ours) == _meanings(theirs)[: len(ours.calls)] and more[0].arguments in ("", "{}")


def _loses_calls(ours: Parsed, theirs: Parsed) -> bool:
    return len(ours.calls) > len(theirs.calls) and _is_subsequence(_meanings(theirs), _meanings(ours))


def _takes_markers_for_values(ours: Parsed, theirs: Parsed) -> bool:
    return len(ours.calls) == len(theirs.calls) and any("<arg_" in call.arguments for call in theirs.calls)


def _has_other_types(ours: Parsed, theirs: Parsed) -> bool:
    keys, other = _keys(ours), _keys(theirs)
    return _has_all_text(ours, theirs) and len(ours.calls) == len(theirs.calls) and _is_subsequence(other, keys)


_KEY: Final = re.compile(r'"((?:[^"\\]|\\.)*)"\s*:')


def _keys(parsed: Parsed) -> list[str]:
    """The names of all members, also of arguments that are incomplete."""
    return [name for call in parsed.calls for name in _KEY.findall(call.arguments)]


def _takes_text_for_names(ours: Parsed, theirs: Parsed) -> bool:
    return any(not name.isidentifier() for name in (*_keys(theirs), *(call.name for call in theirs.calls)))


def _finds_call_in_damage(ours: Parsed, theirs: Parsed) -> bool:
    return _is_subsequence(_meanings(ours), _meanings(theirs)) and all(c.name in repr(ours) for c in theirs.calls)


def _takes_call_for_arguments(ours: Parsed, theirs: Parsed) -> bool:
    return any(call.arguments.startswith('{"name":') for call in theirs.calls)


def _makes_calls_of_damaged_objects(ours: Parsed, theirs: Parsed) -> bool:
    return not set(_meanings(theirs)) <= set(_meanings(ours))


def _joins_calls(ours: Parsed, theirs: Parsed) -> bool:
    return _is_subsequence([call.name for call in theirs.calls], [call.name for call in ours.calls])


LOSES_TEXT: Final = "vLLM drops text that is neither a call nor a marker"
LOSES_ARGUMENTS: Final = "vLLM drops an argument without its end marker, or leaves the JSON text open after it"
LOSES_CALLS: Final = "vLLM drops complete calls"

WRONG_TYPES: Final = "vLLM gives values other types than the tool's schema does, or drops those with a `<`"

DIFFERENCES: Final = (
    Difference(LOSES_TEXT, _loses_text),
    Difference(WRONG_TYPES, _has_other_types, ("functiongemma",)),
    Difference(LOSES_ARGUMENTS, _loses_arguments),
    Difference(
        "vLLM makes a call without arguments of a call whose beginning is incomplete", _makes_call_of_incomplete_header
    ),
    Difference(LOSES_CALLS, _loses_calls),
    Difference("vLLM takes damaged text for a name", _takes_text_for_names, ("gemma4", "poolside_v1")),
    Difference("a call behind damaged text is content here", _finds_call_in_damage, ("gemma4",)),
    Difference("vLLM takes the text of a damaged call for its arguments", _takes_call_for_arguments, ("granite",)),
    Difference("vLLM makes a call of an object that is not JSON", _makes_calls_of_damaged_objects, ("granite",)),
    Difference(
        "vLLM adds the arguments of the next call to a call without its end marker",
        _joins_calls,
        ("qwen3_xml", "mimo", "step3p5", "seed_oss"),
    ),
    Difference(
        "vLLM takes the markers of the next argument for text of a value without end marker",
        _takes_markers_for_values,
        ("glm45", "poolside_v1"),
    ),
)


def _meanings(parsed: Parsed) -> list[tuple[str, str]]:
    return [call.meaning for call in parsed.calls]


def _has_all_text(ours: Parsed, theirs: Parsed) -> bool:
    return ours.reasoning.startswith(theirs.reasoning) and _is_subsequence(
        "".join(theirs.content.split()), ours.content
    )


def _has_all_arguments(ours: ParsedCall, theirs: ParsedCall) -> bool:
    if ours.name != theirs.name:
        return False
    try:
        return _is_subsequence(_members(theirs.arguments or "{}"), _members(ours.arguments))
    except ValueError:
        return ours.arguments.startswith(theirs.arguments.rstrip('"}')) or theirs.arguments.startswith(ours.arguments)


def _members(arguments: str) -> list[tuple[str, object]]:
    """The members of the object, including names that occur twice."""
    return list(json.loads(arguments, object_pairs_hook=lambda pairs: pairs))


def _is_subsequence(parts: Iterable[object], whole: Iterable[object]) -> bool:
    """Whether the whole has all parts in this order."""
    rest = iter(whole)
    return all(part in rest for part in parts)
