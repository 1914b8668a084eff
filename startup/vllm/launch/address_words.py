"""vLLM's command line with folders in place of addresses: file:// and, once downloaded, object stores."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from startup.download.obtain import begin_download
from startup.model.file_plan import Download, FilePlan
from startup.model.object_address import without_file_scheme
from startup.serve_words import normalise
from startup.vllm.command_line import CommandLine

_MODEL_FLAGS: Final = ("--model", "--model-tag")
_FLAGS: Final = (*_MODEL_FLAGS, "--tokenizer")


def with_folders(line: CommandLine, folders: Mapping[Download, Path]) -> CommandLine:
    """The same line with a folder for each address of model and tokenizer; the address stays the served name.

    Args:
        line: the line of the user.
        folders: what was downloaded.
    """
    paths = dict(_find_paths(line.plan, folders)) if line.plan is not None else {}
    if not paths:
        return line
    if line.model not in paths:
        return replace(line, words=tuple(_replace_addresses(line.words, paths)))
    words = tuple(_replace_addresses(line.with_served_name().words, paths))
    return replace(line, words=words if _have_model(words) else (paths[line.model], *words))


def fetch_before_start(line: CommandLine, timeout_s: float | None) -> CommandLine:
    """Downloads from object stores, for a start of vLLM in which nothing else runs meanwhile.

    Raises:
        ModelNotFoundError: the store does not deliver.
    """
    plan = line.plan
    if plan is None:
        return line
    objects = replace(plan, places=tuple(place for place in plan.places if place.kind == "object_store"))
    handle = begin_download(objects, lambda _: None, timeout_s=timeout_s) if objects.places else None
    if handle is None:
        return with_folders(line, {})
    with handle:
        return with_folders(line, dict(zip(handle.downloads, handle.result(), strict=True)))


def _find_paths(plan: FilePlan, folders: Mapping[Download, Path]) -> Iterator[tuple[str, str]]:
    for place in plan.main_places:
        if place.kind == "object_store" and (folder := folders.get(plan.download_of(place))) is not None:
            yield place.name, str(folder)
        elif place.kind == "folder" and without_file_scheme(place.name) != place.name:
            yield place.name, without_file_scheme(place.name)


def _have_model(words: tuple[str, ...]) -> bool:
    """Whether the words name a model; if not, the file of --config does."""
    names = {normalise(word.partition("=")[0]) for word in words}
    return not words[0].startswith("-") or not names.isdisjoint(_MODEL_FLAGS)


def _replace_addresses(words: tuple[str, ...], paths: Mapping[str, str]) -> Iterator[str]:
    """Only MODEL, which is the first word, and the values of flags: a served name may be an address."""
    previous = ""
    for index, word in enumerate(words):
        flag, joined, value = word.partition("=")
        if joined and normalise(flag) in _FLAGS and value in paths:
            yield f"{flag}={paths[value]}"
        elif (index == 0 or normalise(previous) in _FLAGS) and word in paths:
            yield paths[word]
        else:
            yield word
        previous = word
