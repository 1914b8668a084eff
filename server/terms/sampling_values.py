"""The server's sampling values for requests that omit them: from generation_config.json and from a flag.

vLLM reads the same values. It starts with those that are out of range, and then rejects each request that
omits them. The embedded engine ignores them with a warning, which the preflight gives first.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple, get_type_hints

import msgspec

from envs.suggestion import did_you_mean
from server.terms.http_body.request_body import (
    MinP,
    OutputLimit,
    Penalty,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopP,
)

FLAG: Final = "--override-generation-config"
FILE: Final = "generation_config.json"
_LIMIT: Final = "max_new_tokens"
_OF_TRANSFORMERS: Final = frozenset(
    [
        "bad_words_ids",
        "begin_suppress_tokens",
        "bos_token_id",
        "cache_implementation",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_repetition_penalty",
        "eos_token_id",
        "epsilon_cutoff",
        "eta_cutoff",
        "guidance_scale",
        "length_penalty",
        "max_length",
        "max_time",
        "min_length",
        "min_new_tokens",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_scores",
        "pad_token_id",
        "penalty_alpha",
        "sequence_bias",
        "stop_strings",
        "suppress_tokens",
        "top_h",
        "transformers_version",
        "typical_p",
        "use_cache",
    ]
)
"""Other settings in the file. They have no effect, and are no misspelt names."""


class SamplingValues(msgspec.Struct, frozen=True, kw_only=True):
    """The server's sampling values, for requests that omit them."""

    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    top_k: TopK = 0
    min_p: MinP = 0.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    max_new_tokens: OutputLimit | None = None


_TYPES: Final = get_type_hints(SamplingValues, include_extras=True)


class SamplingFault(NamedTuple):
    """A value or a name that has no effect."""

    text: str
    is_fatal: bool = False
    """Whether neither engine starts with it."""


class FoundValues(NamedTuple):
    """The usable values of a file or flag, and its faults."""

    values: Mapping[str, Any]
    faults: tuple[SamplingFault, ...]


def find_values(content: Mapping[str, Any], place: str) -> FoundValues:
    """Takes the sampling values out of a file or of the flag. `place`: the path of the file, or the flag."""
    given = {name: _plain(content[name]) for name in _TYPES if content.get(name) is not None}
    usable: dict[str, Any] = {}
    faults: list[SamplingFault] = []
    for name, value in given.items():
        problem = _problem(name, value)
        if problem:
            faults.append(_fault(name, value, problem, place))
        else:
            usable[name] = value
    return FoundValues(usable, (*faults, *_unknown(content, place)))


def _plain(value: Any) -> Any:
    """Python, and so vLLM, takes true for 1."""
    return int(value) if isinstance(value, bool) else value


def _problem(name: str, value: Any) -> str:
    """Why requests could not have this value. Empty if they could."""
    try:
        msgspec.convert(value, _TYPES[name])
    except msgspec.ValidationError as err:
        text = str(err)
        return text[:1].lower() + text[1:].replace("`", "")
    return ""


def _fault(name: str, value: Any, problem: str, place: str) -> SamplingFault:
    text = f"{place}: {name} {value!r:.80}"
    is_number = isinstance(value, int | float) and value > 0
    if name == _LIMIT and place != FLAG and not is_number:
        return SamplingFault(f"{text} is no number of tokens ({problem}): correct it, or leave it out", is_fatal=True)
    return SamplingFault(f"{text} can be in no request ({problem}): correct it, or leave it out")


def _unknown(content: Mapping[str, Any], place: str) -> Iterator[SamplingFault]:
    """Names without effect: all of the flag, and those of a file that look like a name with effect."""
    for name in content:
        guess = did_you_mean(name, (*_TYPES, *_OF_TRANSFORMERS)) if name not in _TYPES else ""
        is_misspelt = name not in _OF_TRANSFORMERS and any(f"'{known}'" in guess for known in _TYPES)
        if is_misspelt or (place == FLAG and name not in _TYPES):
            shown = guess if is_misspelt else f": only {', '.join(_TYPES)} have one"
            yield SamplingFault(f"{place}: {name!r:.80} has no effect{shown}")
