"""Checks that model and tokenizer exist or may be downloaded, and whether a cached snapshot is complete."""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import Final

from base.machine.files import nearest_existing
from base.machine.memory import available_bytes
from base.wording import format_bytes, list_some
from envs.foreign import expand_home
from envs.redaction import without_login
from envs.registry import env
from startup.files.download.messages import DownloadError
from startup.files.model.checkpoint_folder import ADAPTER_CONFIG
from startup.files.model.file_faults import read_json_object
from startup.files.model.hub_settings import hub_endpoints
from startup.files.model.model_place import FolderListing, ModelPlace, absence_problem, find_snapshot
from startup.files.model.wanted_files import MISTRAL_WEIGHTS
from startup.session.preflight.report import CHOICE, Finding, error, info, unchecked, warning

_TEMPLATE: Final = "chat_template.jinja"
_OTHER_TEMPLATES: Final = ("tokenizer_config.json", "chat_template.json")


def check_model_place(place: ModelPlace) -> Iterator[Finding]:
    """Reports a name that is neither a folder nor a hub name, and a download that offline mode forbids.

    With vLLM, a part of the model in the hub's cache is enough, because vLLM starts with this part.
    """
    option = "--tokenizer" if place.wanted.role == "tokenizer" else "MODEL"
    is_vllm = place.wanted.engine == "vllm"
    if (problem := absence_problem(place)) and not place.is_default and not (is_vllm and _is_cached(place)):
        report = warning if is_vllm and Path(expand_home(place.name)).is_file() else error
        yield report("model", f"{option} {problem}")


def link_findings(places: Iterable[ModelPlace]) -> Iterator[Finding]:
    """Reports files of model, tokenizer and others that are links to nowhere."""
    for problem, is_needed in chain.from_iterable(place.lost_files.items() for place in places):
        yield (error if is_needed else warning)("links", problem)


def unchecked_places(places: Iterable[ModelPlace]) -> Iterator[Finding]:
    """Names the models and adapters whose files are not checked, because they are not on disk yet."""
    remote = {place.name: place for place in places if place.kind in ("hub", "vllm")}
    for name, place in remote.items():
        if place.folder is None:
            yield unchecked("files", f"{name} is not on disk: its files are not checked before the start has them")
        elif place.kind == "hub":
            yield unchecked("files", f"{name} is not wholly on disk: files that are missing are not checked")


def _is_cached(place: ModelPlace) -> bool:
    """Whether any part of the model is in vLLM's download folder or in the hub's cache."""
    if place.folder is not None:
        return True
    hub_cache = env.HF_HUB_CACHE.get()
    return find_snapshot(place.name, revision=place.revision, cache_dir=hub_cache) is not None


def choice_findings(place: ModelPlace, *, has_template: bool) -> Iterator[Finding]:
    """Says which files of the model are read if others have the same purpose. A start logs this.

    `has_template`: whether the start has a chat template of its own.
    """
    if place.folder is None or not place.is_local:
        return
    listing = FolderListing(place.folder)
    names, weight_map = listing.names, listing.weight_map_of(place.wanted)
    weights = place.wanted.choose_weights(names, weight_map)
    yield from _choice(place.folder, "weights are", weights, place.wanted.choose_no_weights(names, weight_map))
    configs = [name for name in ("config.json", "params.json") if name in names]
    if place.wanted.engine == "vllm" and any(fnmatchcase(name, MISTRAL_WEIGHTS) for name in names):
        configs.reverse()
    yield from _choice(place.folder, "the configuration is", configs[:1], configs[1:])
    if not has_template and _TEMPLATE in names:
        content = {name: read_json_object(place.folder / name).content for name in _OTHER_TEMPLATES if name in names}
        others = [name for name, each in content.items() if "chat_template" in each]
        yield from _choice(place.folder, "the chat template is", [_TEMPLATE], others)


def _choice(folder: Path, what: str, read: Sequence[str], others: Sequence[str]) -> Iterator[Finding]:
    if read and others:
        yield info(CHOICE, f"{folder}: {what} read from {list_some(read, 2)}, not from {list_some(others)}")


def file_choice(folder: Path, what: str, files: Sequence[str]) -> Iterator[Finding]:
    """Says that the first of these files is read, if others of them exist."""
    present = [name for name in files if (folder / name).exists()]
    return _choice(folder, what, present[:1], present[1:])


def check_hub(place: ModelPlace, token: str | None) -> Iterator[Finding]:
    """Sends the first requests of a download, for the list of files and the first file.

    The list shows whether the hub can be reached, and the first file shows whether the model is gated. With
    vLLM, an unreachable hub is only a warning, because vLLM's own client may succeed.
    """
    from startup.files.download.hub_client import HubClient, try_each  # noqa: PLC0415 - no start needs it

    try:
        client = HubClient(token=token)
        listing = try_each(hub_endpoints(), lambda address: client.list_files(place.name, place.revision, address))
        for name in place.wanted.choose_small(listing.files)[:1]:
            client.check_access(place.name, listing, name)
    except DownloadError as err:
        is_final = err.kind in ("refused", "settings", "unreachable" if place.wanted.engine == "embedded" else "")
        report = error if is_final and err.retry_s is None and not place.is_default else warning
        yield report("hub", str(err))
    else:
        if place.wanted.role == "model" and ADAPTER_CONFIG in listing.files and "config.json" not in listing.files:
            advice = f"serve that model with --engine vllm --enable-lora --lora-modules NAME={place.name}"
            yield error("config", f"{place.name} is an adapter, whose {ADAPTER_CONFIG} names its model: {advice}")
        sizes = {name: file.size or 0 for name, file in listing.files.items()}
        yield _describe_download(place, sizes, listing.endpoint)


def _describe_download(place: ModelPlace, sizes: Mapping[str, int], endpoint: str) -> Finding:
    """The sizes of the files, beside free disk and memory. A warning if there is too little of them."""
    files = place.wanted.choose(sizes)
    total = sum(sizes[name] for name in files)
    weights = sum(sizes[name] for name in place.wanted.choose_weights(sizes))
    disk = shutil.disk_usage(nearest_existing(place.cache_dir or env.HF_HUB_CACHE.get())).free
    memory = available_bytes()
    lacks_memory = place.wanted.engine == "embedded" and 0 < memory < weights
    text = (
        f"{place.name} is to be downloaded from {without_login(endpoint)}: {len(files)} files with "
        f"{format_bytes(total)}, of which the weights have {format_bytes(weights)}; {format_bytes(disk)} are free on "
        f"the disk, and {format_bytes(memory)} of memory are available"
    )
    return (warning if total > disk or lacks_memory else info)("hub", text)
