"""Turns the words of `vllm serve` into those that argparse gets, as vLLM's `FlexibleArgumentParser` does.

It reads the file of `--config`, writes dashes in names, expands `-O3`, and joins `--flag.key value` to JSON.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from startup.vllm.command_line import read_config_text

_MODEL: Final = re.compile(r"--model(=.+|$)")
_SERVED_NAME: Final = re.compile(r"--served[-_]model[-_]name(=.+|$)")
_CONFIG_FLAG: Final = re.compile(r"--config(=.+|$)")
_NAME: Final = re.compile(r"(?<=--)[^.]*")
_CONFIG: Final = "--config"
_YAML: Final = ("yaml", "yml")
_LEVELS: Final = ("0", "1", "2", "3")
_SUFFIXES: Final = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)([kKmMgGtT])")
_QUOTED: Final = re.compile(r'("(?:[^"\\]|\\.)*")')
_BARE_SIZE: Final = re.compile(r"\b\d+(?:\.\d+)?[kKmMgGtT]\b")


class WordsError(Exception):
    """vLLM ends with an error while it reads these words."""


def prepare_words(words: Sequence[str]) -> list[str]:
    """The words for argparse, of those after `vllm serve`.

    Raises:
        WordsError: vLLM would raise an error before argparse reads them.
    """
    given = _model_first(list(words))
    if _lacks_model(given):
        raise WordsError("--served-model-name needs MODEL as the first word after `serve`")
    if _CONFIG in given:
        given = _with_config(given)
    return _join_keys(list(_normalise(given)))


def parse_size(text: str) -> int:
    """An integer, or one with a suffix such as `8k`; raises ValueError."""
    text = text.strip()
    if (match := _SIZE.fullmatch(text)) is None:
        return int(text)
    number, suffix = match.groups()
    return int(float(number) * _SUFFIXES[suffix]) if suffix.islower() else int(number) * _SUFFIXES[suffix]


def expand_sizes(text: str) -> str:
    """JSON with `80g` outside of quotes written as a number."""
    parts = _QUOTED.split(text)
    parts[::2] = [_BARE_SIZE.sub(lambda match: str(parse_size(match[0])), part) for part in parts[::2]]
    return "".join(parts)


def _model_first(words: list[str]) -> list[str]:
    """`--model NAME` is moved to the front as MODEL."""
    place = next((index for index, word in enumerate(words) if _MODEL.match(word)), None)
    if place is None:
        return words
    if words[place] != "--model":
        return [words[place].removeprefix("--model="), *words[:place], *words[place + 1 :]]
    if place + 1 == len(words):
        raise WordsError("--model needs a value: a folder or a name on the Hugging Face hub")
    return [words[place + 1], *words[:place], *words[place + 2 :]]


def _lacks_model(words: list[str]) -> bool:
    if not words or not words[0].startswith("-") or any(map(_CONFIG_FLAG.match, words)):
        return False
    return any(map(_SERVED_NAME.match, words))


def _with_config(words: list[str]) -> list[str]:
    """Inserts the settings of the file after MODEL, so that the words take precedence."""
    if words.count(_CONFIG) > 1:
        raise WordsError("--config is given more than once: vLLM reads one file")
    index = words.index(_CONFIG)
    if index + 1 == len(words):
        raise WordsError("--config needs the path of a YAML file")
    settings = list(_words_of_config(_read_config(words[index + 1])))
    has_model = bool(words) and not words[0].startswith("-")
    if not has_model and "--model" not in settings:
        raise WordsError(f"no model: give MODEL as the first word after `serve`, or `model:` in {words[index + 1]}")
    begin = 1 if has_model else 0
    return [*words[:begin], *settings, *words[begin:index], *words[index + 2 :]]


def _read_config(name: str) -> dict[str, Any]:
    if name.split(".")[-1] not in _YAML:
        raise WordsError(f"--config {name}: vLLM reads only files that end in .yaml or .yml")
    import yaml

    try:
        content = yaml.safe_load(read_config_text((_CONFIG, name)).text)
    except OSError as err:
        raise WordsError(f"--config {name} cannot be read: {err.strerror}") from err
    except UnicodeDecodeError as err:
        raise WordsError(f"--config {name} is not a text file") from err
    except (yaml.YAMLError, RecursionError) as err:
        raise WordsError(f"--config {name} is not YAML: {' '.join(str(err).split())}") from err
    if not isinstance(content, dict):
        raise WordsError(f"--config {name} must be a mapping of flag names to values")
    return {str(key): value for key, value in content.items()}


def _words_of_config(config: dict[str, Any]) -> Iterator[str]:
    """As vLLM writes them; `false` adds nothing."""
    for key, value in config.items():
        if value is True:
            yield f"--{key}"
        elif isinstance(value, list):
            yield from (f"--{key}", *map(str, value)) if value else ()
        elif isinstance(value, dict):
            yield from (f"--{key}", json.dumps(value))
        elif value is not False:
            yield from (f"--{key}", str(value))


def _normalise(words: list[str]) -> Iterator[str]:
    for word, following in zip(words, [*words, ""][1:], strict=True):
        if word.startswith("--"):
            name, is_attached, value = word.partition("=")
            yield _NAME.sub(lambda match: match[0].replace("_", "-"), name, count=1) + is_attached + value
        elif word.startswith("-O") and word != "-O":
            yield from ("--optimization-level", word[3:] if word[2] == "=" else word[2:])
        elif word == "-O" and following in _LEVELS:
            yield "--optimization-level"
        else:
            yield word


def _join_keys(words: list[str]) -> list[str]:
    """`--flag.a.b 1 --flag.c 2` becomes `--flag {"a": {"b": 1}, "c": 2}`, at the end."""
    kept: list[str] = []
    objects: dict[str, dict[str, Any]] = {}
    rest = iter(words)
    for word in rest:
        name, is_attached, value = word.partition("=")
        if not (word.startswith("-") and "." in name):
            kept.append(word)
            continue
        if not is_attached:
            value = next(rest, "")
            if not value:
                raise WordsError(f"{name} needs a value")
        if name.endswith("+"):
            name, value = name[:-1], json.dumps(value.split(","))
        flag, *keys = name.split(".")
        _merge(objects.setdefault(flag, {}), _nest(keys, _parse(value)))
    for flag, content in objects.items():
        kept += [flag, json.dumps(content)]
    return kept


def _nest(keys: list[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return dict(value)


def _parse(text: str) -> Any:
    for read in (json.loads, parse_size):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def _merge(into: dict[str, Any], update: dict[str, Any]) -> None:
    for key, new in update.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            _merge(old, new)
        elif isinstance(old, list) and isinstance(new, list):
            old.extend(new)
        else:
            into[key] = new
