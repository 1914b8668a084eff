"""Finds the files of one repository on disk: in a folder, or in the hub's cache. Uses no network."""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from base.machine.files import is_safe_name
from envs import foreign
from envs.foreign import expand_home
from startup.files.model.checkpoint_folder import (
    adapter_problem,
    files_below,
    model_problem,
    read_shard_names,
    tokenizer_problem,
)
from startup.files.model.file_faults import file_problem, link_problem, places_near
from startup.files.model.hub_settings import is_offline
from startup.files.model.model_name import is_hub_id, other_form
from startup.files.model.wanted_files import WantedFiles

_DEFAULT_REVISION: Final = "main"
_REDIRECT: Final = "VLLM_MODEL_REDIRECT_PATH"
_COMMIT: Final = re.compile("[0-9a-f]{40}")
_LISTED_FOLDERS: Final = re.compile(r"\d+_[A-Za-z]+|additional_chat_templates")
_LONGEST_NAME: Final = 200
"""The longest name of a folder in the cache, in characters. File systems allow 255."""
_UNFINISHED: Final = ".vllm-cli-unfinished"


class ModelPlace(NamedTuple):
    """A repository or folder, and where its files are or will be on disk."""

    kind: Literal["folder", "snapshot", "hub", "vllm", "nowhere"]
    """The kind of the place.

    `folder`: a local folder. `snapshot`: a complete snapshot in the hub's cache. `hub`: a repository whose
    files must be downloaded. `vllm`: a name that only vLLM can resolve. `nowhere`: a name that is neither a
    folder nor a possible name on the hub.
    """
    name: str
    folder: Path | None = None
    """The folder of the files. None if there is no folder yet.

    For a repository that must be downloaded, this is the incomplete snapshot, if there is one.
    """
    revision: str | None = None
    is_default: bool = False
    wanted: WantedFiles = WantedFiles(role="model")
    cache_dir: Path | None = None
    """The cache that was searched. None for a folder."""

    @property
    def is_local(self) -> bool:
        return self.kind in ("folder", "snapshot")

    @property
    def lost_files(self) -> Mapping[str, bool]:
        """Wanted files that are links to nowhere, as in `_lost_files`. Empty if a download fetches them."""
        if self.folder is None or not (self.is_local or is_offline()):
            return {}
        return _lost_files(self.wanted, FolderListing(self.folder))

    @property
    def is_of_branch(self) -> bool:
        """Whether all files are on disk, but come from a branch or tag that may have moved since."""
        return self.kind == "snapshot" and not is_commit(self.revision or _DEFAULT_REVISION)


class FolderListing:
    """The files of a folder, with the names that they would have in a repository. Reads the folder once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found: list[str] = []
        others: list[str] = []
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):  # a copy that is not complete, or attributes of macOS
                    (found if entry.is_file() else others).append(entry.name)
        for name in filter(_LISTED_FOLDERS.fullmatch, [*others]):
            with suppress(OSError):
                for path in (folder / name).glob("[!.]*"):
                    (found if path.is_file() else others).append(f"{name}/{path.name}")
        indexes = [name for name in found if name.endswith(".index.json")] if others else []
        named = {name for index in indexes for name in read_shard_names(folder / index, found).values()}
        self.names = sorted({*found, *files_below(folder, named)})
        """The names of the existing files that are not hidden. Empty if the folder cannot be read.

        A file in a subfolder is included if a start may read it. Its name is a path with `/`.
        """
        self.lost = sorted(name for name in {*others, *named} if link_problem(folder / name))
        """The names of links to nowhere, as in `names`."""

    def weight_map_of(self, wanted: WantedFiles) -> Mapping[str, str]:
        """Maps tensors to files, by the index of the wanted weights. Empty if there is no index."""
        index = wanted.index_of(self.names)
        return read_shard_names(self.folder / index, self.names) if index is not None else {}


def find_place(name: str, wanted: WantedFiles, cache_dir: Path, *, revision: str | None = None) -> ModelPlace:
    """Finds where the wanted files of a folder or repository are.

    Args:
        name: a folder, or a name on the hub.
        wanted: which files of this folder or repository the start reads.
        cache_dir: the cache of models from the hub.
        revision: branch, tag or commit.
    """
    is_vllm = wanted.engine == "vllm"
    if is_vllm and foreign.text_of(_REDIRECT):
        return ModelPlace("vllm", name, wanted=wanted)
    path = Path(expand_home(without_file_scheme(name)))
    if path.is_dir():  # vLLM ignores no files in a folder
        return ModelPlace("folder", name, path.absolute(), wanted=replace(wanted, ignore_patterns=()))
    if link_problem(path):
        return ModelPlace("nowhere", name, wanted=wanted)
    names_file = ":" in name or ".gguf" in name
    if is_vllm and (may_be_renamed() or (names_file and other_form(name) is None)):
        return ModelPlace("vllm", name, wanted=wanted)
    if path.exists() or not is_hub_id(name):
        return ModelPlace("nowhere", name, wanted=wanted)
    place = ModelPlace("hub", name, revision=revision, wanted=wanted, cache_dir=cache_dir)
    return find_in_cache(place)


def absence_problem(place: ModelPlace) -> str | None:
    """Why the place has no files: its name is wrong, or offline mode forbids the download. Else None."""
    if place.kind == "nowhere":
        return f"{place.name} {_name_problem(place.name)}"
    if place.kind == "hub" and is_offline():
        state = f"only in part in {place.folder}" if place.folder else f"not in {place.cache_dir}"
        near = near_on_disk(place.name, place.cache_dir)
        return f"{place.name} is {state}, and HF_HUB_OFFLINE forbids the download: unset it for this start{near}"
    return None


def near_on_disk(name: str, cache_dir: Path | None = None) -> str:
    """` (did you mean 'x'?)` if a model in the cache or a folder beside the path has a similar name."""
    from envs.suggestion import did_you_mean  # noqa: PLC0415 - only after a failure

    path = Path(expand_home(name))
    beside: list[str] = []
    with suppress(OSError):
        beside = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    if near := did_you_mean(path.name, beside):
        return near
    folders = cache_dir.glob("models--*/snapshots") if cache_dir is not None else ()
    names = [folder.parent.name.removeprefix("models--").replace("--", "/") for folder in folders]
    cached = {each.rpartition("/")[2]: each for each in names if each != name}  # a similar owner is no similar model
    near = did_you_mean(path.name, cached)
    for short, each in cached.items():
        if repr(short) in near:
            return near.replace(repr(short), repr(each))
    return near


def _name_problem(name: str) -> str:
    path = Path(expand_home(name))
    if problem := file_problem(path):
        return problem
    if path.exists():
        near = places_near(path, "config.json")
        return f"is a file: give the folder that holds config.json and the weights{near}"
    if advice := other_form(name):
        return advice
    return f"is neither a folder nor a name on the Hugging Face hub{near_on_disk(name)}"


def find_in_cache(place: ModelPlace) -> ModelPlace:
    """Adds the snapshot in the cache to the place. The kind becomes `snapshot` if no file is missing."""
    assert place.cache_dir is not None
    snapshot = find_snapshot(place.name, revision=place.revision, cache_dir=place.cache_dir)
    if snapshot is None:
        return place
    is_incomplete = (
        place_problem(place.wanted, snapshot) is not None
        or bool(FolderListing(snapshot).lost)
        or unfinished_marker(snapshot).exists()
    )
    return place._replace(kind="hub" if is_incomplete else "snapshot", folder=snapshot)


def place_problem(wanted: WantedFiles, folder: Path) -> str | None:
    """Why the wanted files cannot be read from the folder. None if they can be read."""
    listing = FolderListing(folder)
    lost = (problem for problem, is_needed in _lost_files(wanted, listing).items() if is_needed)
    return next(lost, None) or _missing_problem(wanted, listing)


def _lost_files(wanted: WantedFiles, listing: FolderListing) -> Mapping[str, bool]:
    """Says which wanted files are links to nowhere, and whether a start needs each of them."""
    if not listing.lost:
        return {}
    names = [*listing.names, *listing.lost]
    chosen = wanted.choose(names, listing.weight_map_of(wanted))
    lost = set(listing.lost).intersection(chosen)
    paths = {name: listing.folder / name for name in sorted(lost)}
    return {f"{path} {link_problem(path)}": wanted.is_needed(name) for name, path in paths.items()}


def _missing_problem(wanted: WantedFiles, listing: FolderListing) -> str | None:
    folder = listing.folder
    if wanted.role == "tokenizer":
        return tokenizer_problem(folder)
    if wanted.role == "adapter":
        return adapter_problem(folder)
    if wanted.role in ("model", "draft") and wanted.engine == "embedded":
        problem = model_problem(folder)
    else:
        problem = _configuration_problem(wanted, listing)
    return problem or (tokenizer_problem(folder) if wanted.has_tokenizer else None)


def _configuration_problem(wanted: WantedFiles, listing: FolderListing) -> str | None:
    needed = ("generation_config.json",) if wanted.role == "generation_config" else ("config.json", "params.json")
    if not any(name in listing.names for name in needed):
        return f"{listing.folder} has no {needed[0]}{places_near(listing.folder, needed[0])}"
    return _weights_problem(wanted, listing) if wanted.has_weights else None


def _weights_problem(wanted: WantedFiles, listing: FolderListing) -> str | None:
    """Describes a missing weight file, by the index or the shards' numbers. None if no file is missing."""
    required = wanted.required_weights(listing.names, listing.weight_map_of(wanted))
    if not required:
        return f"{listing.folder} has no weights for --load-format {wanted.load_format}"
    missing = sorted(required.difference(listing.names))
    return f"{listing.folder} lacks {missing[0]}" if missing else None


def is_commit(revision: str) -> bool:
    """Whether the revision is the hash of a commit, which never moves."""
    return _COMMIT.fullmatch(revision) is not None


def find_snapshot(model_id: str, *, revision: str | None, cache_dir: Path) -> Path | None:
    """The folder of a cached revision, in which files may be missing. None if it was never downloaded."""
    folder = cache_dir / repository_name(model_id)
    commit = cached_commit(folder, revision or _DEFAULT_REVISION)
    if commit is None:
        return None
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def cached_commit(folder: Path, revision: str) -> str | None:
    """The commit that the cache has recorded for a revision. None if its text cannot be a folder's name.

    A commit is its own name: a file in `refs` that is named like it may come from a faulty client or hub.
    """
    commit = revision
    if not is_commit(revision) and is_safe_name(revision):
        with suppress(OSError, UnicodeDecodeError), (folder / "refs" / revision).open(encoding="ascii") as ref:
            commit = ref.read(_LONGEST_NAME).strip()
    return commit if "/" not in commit and is_safe_name(commit) else None


def repository_name(name: str) -> str:
    """The name of a repository's folder in a cache, as the hub's client forms it."""
    return f"models--{name.replace('/', '--')}"


def unfinished_marker(snapshot: Path) -> Path:
    """The file that exists while a download into the snapshot is unfinished.

    Without this marker, a missing file that only the repository's list names would not be noticed.
    """
    return snapshot.parent.parent / f"{_UNFINISHED}-{snapshot.name}"


def may_be_renamed() -> bool:
    """Whether a name for vLLM may stand for a folder that a file maps it to, or for a model of ModelScope."""
    uses_modelscope = foreign.text_of("VLLM_USE_MODELSCOPE").strip().lower() not in ("", "0", "false")
    return uses_modelscope or bool(foreign.text_of(_REDIRECT))


def without_file_scheme(name: str) -> str:
    """Returns the path in `file:///path`. Returns any other name unchanged."""
    if not name.lower().startswith("file://"):
        return name
    return unquote(urlsplit(name).path)
