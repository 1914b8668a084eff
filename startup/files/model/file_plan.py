"""Plans which files a start reads, for both engines: files on disk in their order, and files to download.

Planning takes less than 10 ms, because it reads only names, links and small JSON files on disk.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from base.machine.page_cache import memory_devices
from server.terms.config import ModelFiles
from startup.files.model.model_place import FolderListing, ModelPlace, find_place
from startup.files.model.model_request import ModelRequest
from startup.files.model.wanted_files import Role, WantedFiles, format_of
from startup.settings.config import DEFAULT_MODEL_ID


@dataclass(frozen=True)
class Download:
    """Files of one repository that are not on disk, or that may have changed since their last download."""

    repo_id: str
    revision: str | None
    """A branch, tag or commit. None stands for the main branch."""
    cache_dir: Path
    """The folder of the hub's cache."""
    wanted: WantedFiles
    token: str | None = field(default=None, repr=False)
    """The token for the hub. None: the hub's client chooses a token."""
    cached: Path | None = None
    """The folder of the last download. A start uses it if nothing has changed, or if no hub answers."""

    @property
    def is_update(self) -> bool:
        """Whether all files are on disk, so that the start first checks whether the branch has moved."""
        return self.cached is not None

    @property
    def cached_folder(self) -> Path:
        """The folder of the last download, which must exist. For a branch, it is named after the commit."""
        assert self.cached is not None
        return self.cached

    @property
    def cached_text(self) -> str:
        day = time.strftime("%Y-%m-%d", time.localtime(self.cached_folder.stat().st_mtime))
        return f"commit {self.cached_folder.name}, downloaded on {day}"

    def describe_commit(self, commit: str) -> str:
        """Returns a message about whether the branch has moved. `commit` is its present commit on the hub."""
        has_moved = commit != self.cached_folder.name
        state = f"has moved to commit {commit}, and is downloaded; on disk is" if has_moved else "is still"
        return f"{self.repo_id}: {self.revision or 'main'} {state} {self.cached_text}"


@dataclass(frozen=True)
class FilePlan:
    """The files that one start reads."""

    request: ModelRequest
    places: tuple[ModelPlace, ...]
    """All repositories and folders with files of the start. The model's place comes first."""

    @property
    def model(self) -> ModelPlace:
        return self.places[0]

    @property
    def tokenizer(self) -> ModelPlace:
        """The place of the tokenizer. It is the model's place unless another tokenizer is configured."""
        return next((place for place in self.places if place.wanted.role == "tokenizer"), self.model)

    @property
    def main_places(self) -> tuple[ModelPlace, ...]:
        """The model's place, and the tokenizer's place if it is another one."""
        return tuple(dict.fromkeys((self.model, self.tokenizer)))

    @property
    def model_folder(self) -> Path | None:
        return self.model.folder if self.model.is_local else None

    @property
    def files(self) -> ModelFiles | None:
        """The folders of model and tokenizer. None if any of their files is not on disk."""
        model, tokenizer = self.model, self.tokenizer
        if not (model.is_local and tokenizer.is_local) or model.folder is None or tokenizer.folder is None:
            return None
        return ModelFiles(path=model.folder, tokenizer_path=tokenizer.folder)

    @cached_property
    def read_order(self) -> tuple[Path, ...]:
        """The files on disk in the order in which the start reads them: configuration, tokenizer, weights."""
        return tuple(dict.fromkeys((*self._small_files, *self._weights)))

    @cached_property
    def prefetched(self) -> tuple[Path, ...]:
        """Files of `read_order` that are read through the page cache and do not already lie in memory."""
        is_cached = format_of(self.request.load_format).is_cached
        files = self.read_order if is_cached else dict.fromkeys(self._small_files)
        devices = memory_devices()
        return tuple(path for path in files if _device(path) not in devices)

    @property
    def downloads(self) -> tuple[Download, ...]:
        return tuple(self.download_of(place) for place in self.places if self.is_downloaded(place))

    def is_downloaded(self, place: ModelPlace) -> bool:
        """Whether the place needs a download: files are missing, or its branch may have moved."""
        return place.kind == "hub" or place.is_of_branch

    def download_of(self, place: ModelPlace) -> Download:
        return Download(
            repo_id=place.name,
            revision=place.revision,
            cache_dir=place.cache_dir or self.request.cache_dir,
            wanted=place.wanted,
            token=self.request.hf_token,
            cached=place.folder if place.is_local else None,
        )

    @property
    def is_on_disk(self) -> bool:
        return all(place.is_local for place in self.places)

    @property
    def _small_files(self) -> Iterator[Path]:
        for listing, wanted in self._listings:
            yield from (listing.folder / name for name in wanted.choose_small(listing.names))

    @property
    def _weights(self) -> Iterator[Path]:
        for listing, wanted in self._listings:
            weight_map = listing.weight_map_of(wanted)
            yield from (listing.folder / name for name in wanted.choose_weights(listing.names, weight_map))

    @cached_property
    def _listings(self) -> list[tuple[FolderListing, WantedFiles]]:
        return [(FolderListing(place.folder), place.wanted) for place in self.places if place.folder is not None]


def plan_files(request: ModelRequest) -> FilePlan:
    """Finds all files that are on disk. Never raises, and sends no request."""
    return FilePlan(request, tuple(_find_places(request)))


def _find_places(request: ModelRequest) -> Iterator[ModelPlace]:
    if request.model is None or (request.model == DEFAULT_MODEL_ID and request.revision is None):
        yield _find_default(request)
    else:
        yield _find(request, request.model, "model", request.revision)
    if request.has_own_tokenizer_place:
        tokenizer = request.tokenizer or request.model or DEFAULT_MODEL_ID
        yield _find(request, tokenizer, "tokenizer", request.revision_of_tokenizer)
    if request.hf_config_path is not None:
        yield _find(request, request.hf_config_path, "config", request.revision)
    if request.generation_config not in ("auto", "vllm"):
        yield _find(request, request.generation_config, "generation_config")
    if request.draft is not None:
        yield _find(request, request.draft.source, "draft", request.draft.revision)
    for adapter in request.adapters:
        place = _find(request, adapter, "adapter")
        if request.engine == "vllm" or place.kind == "folder":  # the embedded engine reads folders only
            yield place


def _find_default(request: ModelRequest) -> ModelPlace:
    """The default model, which may be in the prepared folder. vLLM prefers the hub's files on disk."""
    from startup.files.model.default_model import find_prepared

    place, is_embedded = _find(request, DEFAULT_MODEL_ID, "model"), request.engine == "embedded"
    if (is_embedded or not place.is_local) and (prepared := find_prepared()) is not None:
        return ModelPlace("folder", DEFAULT_MODEL_ID, prepared, wanted=place.wanted)
    return place._replace(is_default=is_embedded)


def _find(request: ModelRequest, name: str, role: Role, revision: str | None = None) -> ModelPlace:
    return find_place(name, WantedFiles.of(role, request), request.cache_dir, revision=revision)


def _device(path: Path) -> int | None:
    try:
        return path.stat().st_dev
    except OSError:
        return None
