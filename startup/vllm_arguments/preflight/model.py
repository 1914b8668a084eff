"""Checks the files of model and tokenizer. vLLM reads more formats than the embedded engine.

Only folders and snapshots in formats that are known here can have errors. Other formats of weights or
configuration, object stores and overrides of the configuration are left to vLLM.
"""

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from base.wording import list_some
from envs.suggestion import did_you_mean
from startup.files.model.checkpoint_folder import folder_problems, no_config_problem, vocabulary_fault
from startup.files.model.file_faults import first_problem, read_json_object
from startup.files.model.hub_settings import is_offline
from startup.files.model.model_place import FolderListing, ModelPlace
from startup.files.model.wanted_files import MISTRAL_WEIGHTS
from startup.session.preflight.checkpoint import (
    CONTENT_CHECKS,
    Checkpoint,
    dtype_problem,
    read_checkpoint,
    read_transformers,
    small_file_findings,
)
from startup.session.preflight.model_places import (
    check_model_place,
    choice_findings,
    link_findings,
    unchecked_places,
)
from startup.session.preflight.report import Finding, error, unchecked, warning
from startup.vllm_arguments.preflight.arguments import GivenStart
from startup.vllm_arguments.vllm_record import ARCHITECTURES, MODEL_TYPES, is_named_now

_SAFETENSORS_FORMATS: Final = ("auto", "hf", "safetensors")
"""Values of --load-format with which vLLM reads the files that `read_checkpoint` checks."""
_CONFIG: Final = "config.json"
_MISTRAL_CONFIG: Final = "params.json"
_TOKENIZER_FILES: Final = ("*token*", "vocab*", "merges.txt", "*.tiktoken", "*.model", "tekken*", "*.vocab", "*bpe*")
_TOKENIZER_JSON: Final = ("tokenizer.json", "tokenizer_config.json")
"""Files that every start reads. Other files are read only for some models, so their faults are warnings."""
_INDEX: Final = "model.safetensors.index.json"
_PLAIN: Final = ("auto", "hf")
_OTHER_CODE: Final = ("auto_map", "speculators_config")
"""If config.json has one of these keys, vLLM may serve the model with a class of another name."""
_TASK: Final = re.compile(r"(?:For[A-Z]\w*|LMHeadModel|Model|Classifier|Reward\w*|)$")
"""The ending of an architecture's name. vLLM serves some architectures with a class of another ending."""


class ModelOnDisk:
    """The model's files and their checks. Reads each folder once."""

    def __init__(self, start: GivenStart) -> None:
        self._start = start
        self._plan = start.line.file_plan

    def findings(self) -> Iterator[Finding]:
        """All findings about the model's files on disk, and about a model that cannot be found."""
        if self._plan is None:
            yield unchecked("model", "no MODEL is named, and the files of vLLM's own default are not checked")
            return
        yield from unchecked_places(self._plan.places)
        for place in self._plan.main_places:
            for finding in check_model_place(place):  # a plugin may read names of other forms
                yield finding._replace(severity="warning") if self._start.record.plugins else finding
        faults = [*link_findings(self._plan.places)]
        yield from faults
        if self.folder is None or any(finding.severity == "error" for finding in faults):
            return
        if not self._start.has("--config-format", "--ignore-patterns") and self._start.load_format == "auto":
            has_template = self._start.has("--chat-template")
            yield from choice_findings(self._plan.model, has_template=has_template)
        yield from self._unread_findings(self.folder)
        faults = list(self._config_findings(self.folder))
        yield from faults
        if any(finding.severity == "error" for finding in faults):
            return  # further missing files have the same cause
        yield from self._code_findings(self.folder)
        yield from self._architecture_findings(self.folder)
        yield from self._weight_findings(self.folder)
        yield from self._tokenizer_findings()

    def downloads(self) -> list[ModelPlace]:
        """Places on the hub whose files are not on disk yet."""
        if self._plan is None or is_offline():
            return []
        return [place for place in self._plan.places if place.kind == "hub" and place.folder is None]

    @cached_property
    def folder(self) -> Path | None:
        """The model's folder or snapshot. None if it is not on disk."""
        return self._plan.model.folder if self._plan is not None else None

    @cached_property
    def is_whole(self) -> bool:
        """Whether vLLM will use only files of the model that are on disk now."""
        has_one_cache = not self._start.has("--download-dir")  # otherwise the configuration may be in the hub's cache
        return self._plan is not None and (self._plan.model.kind == "folder" or (is_offline() and has_one_cache))

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json with --hf-overrides applied. Empty if vLLM may read another configuration."""
        if self.folder is None or not self._reads_config_here:
            return {}
        overrides = self._start.value("--hf-overrides")
        content = read_json_object(self.folder / _CONFIG).content
        return {**content, **overrides} if isinstance(overrides, dict) else content

    @cached_property
    def checkpoint(self) -> Checkpoint | None:
        """The model's weights. None if vLLM may read other weights than this check."""
        return read_checkpoint(self.folder) if self.folder is not None and self._reads_weights_here else None

    @property
    def _reads_config_here(self) -> bool:
        start = self._start
        is_plain = (start.value("--config-format") or "auto") in _PLAIN and not start.value("--hf-config-path")
        return is_plain and self.folder is not None and not (self.folder / _MISTRAL_CONFIG).exists()

    @property
    def _reads_weights_here(self) -> bool:
        if self._start.load_format not in _SAFETENSORS_FORMATS or self._start.has("--ignore-patterns"):
            return False
        return self.folder is not None and next(self.folder.glob(MISTRAL_WEIGHTS), None) is None

    def _unread_findings(self, folder: Path) -> Iterator[Finding]:
        """Reports files in a format that these checks cannot read."""
        what = "in a format that only vLLM itself reads, so it is not checked"
        if not self._reads_config_here:
            yield unchecked("config", f"the configuration of {folder} is {what}")
        if not self._reads_weights_here:
            yield unchecked("weights", f"the weights of {folder} are {what.replace('it is', 'they are')}")

    def _config_findings(self, folder: Path) -> Iterator[Finding]:
        if not self._reads_config_here:
            return
        path = folder / _CONFIG
        if not path.exists():
            if self.is_whole and not self._start.record.plugins and not any(folder.glob("*.gguf")):
                yield error("config", no_config_problem(folder))
        elif problem := read_json_object(path).problem:
            yield error("config", problem)
        elif not self.config.get("model_type") and not self.config.get("architectures"):
            yield warning("config", f"{path} names neither model_type nor architectures")
        is_plain = self._is_certain and not self._start.record.plugins and not self.config.get("auto_map")
        if problem := dtype_problem(read_json_object(path).content):
            yield (error if is_plain else warning)("config", f"{path}: {problem}")

    def _code_findings(self, folder: Path) -> Iterator[Finding]:
        """Reports a model type that neither vLLM nor transformers has, unless the model's code is trusted."""
        model_type, auto_map = self.config.get("model_type"), self.config.get("auto_map")
        known = [self._start.record.names.get(each, ()) for each in MODEL_TYPES]
        if not isinstance(model_type, str) or not all(known) or any(model_type in names for names in known):
            return
        if any(is_named_now(each, model_type) for each in MODEL_TYPES):
            return
        report = error if self._is_certain else warning
        if isinstance(auto_map, dict) and "AutoConfig" in auto_map:
            if not self._start.has("--trust-remote-code"):
                what = f"{folder} needs its own code for model_type {model_type!r}"
                yield report("remote_code", f"{what}: give --trust-remote-code if you trust it")
        elif not set(self._given_architectures) & {*self._start.record.names.get(ARCHITECTURES, ())}:
            what = f"{folder / _CONFIG}: neither this vLLM nor its transformers know the model_type {model_type!r}"
            yield report("config", f"{what}: upgrade them, or correct it")

    @property
    def _given_architectures(self) -> list[str]:
        names = self.config.get("architectures")
        return list(map(str, names)) if isinstance(names, list) else []

    @property
    def _is_certain(self) -> bool:
        """Whether only the folder and this release decide which class serves the model."""
        return self._start.is_known and not self._start.has("--hf-overrides", "--model-class-overrides")

    def _architecture_findings(self, folder: Path) -> Iterator[Finding]:
        """Reports an architecture that neither vLLM nor transformers nor the model's own code has."""
        given, known = self._given_architectures, self._start.record.names.get(ARCHITECTURES, ())
        if not given or not known or any(map(self.config.get, _OTHER_CODE)):
            return
        stems, tasks = map(set, zip(*map(_split_architecture, known), strict=True))
        is_known = any(stem in stems and task in tasks for stem, task in map(_split_architecture, given))
        if is_known or any(is_named_now(ARCHITECTURES, name) or _is_in_transformers(name) for name in given):
            return
        is_of_vllm = self._start.value("--model-impl") in (None, "auto", "vllm")
        what = f"{folder / _CONFIG}: this vLLM has no architecture {given[0]!r}{did_you_mean(given[0], known)}"
        yield (error if self._is_certain and is_of_vllm else warning)(
            "architecture", f"{what}, nor has transformers: upgrade them, or correct it"
        )

    def _weight_findings(self, folder: Path) -> Iterator[Finding]:
        yield from self._other_weight_findings(folder)
        if (checkpoint := self.checkpoint) is None:
            return
        # vLLM reads only files of an index, and prefers safetensors of any name; this check does not.
        has_other_index = checkpoint.weights.index_path is None and (folder / _INDEX).exists()
        is_other_kind = not any(path.suffix == ".safetensors" for path in checkpoint.weights.present)
        is_read = not has_other_index and not (is_other_kind and any(folder.glob("[!.]*.safetensors")))
        for finding in checkpoint.findings:
            if finding.check in CONTENT_CHECKS:
                yield finding if is_read else finding._replace(severity="warning")
        if not self.is_whole or self._start.record.plugins:
            return
        below = [str(path.relative_to(folder)) for path in checkpoint.weights.present if path.parent != folder]
        if is_read and below:
            yield (error if self._is_certain else warning)(
                "weights",
                f"{checkpoint.weights.index_path} names {list_some(below)}, but vLLM reads no weights in subfolders: "
                "move them beside the index and correct it, or give --engine embedded",
            )
        for check, text in folder_problems(folder, checkpoint.weights):
            if check == "no_weights" and not _has_other_weights(folder):
                yield error("weights", text)
            elif check == "shards":
                yield (error if checkpoint.weights.index_path is not None else warning)("weights", text)

    def _other_weight_findings(self, folder: Path) -> Iterator[Finding]:
        """Reports weights that vLLM reads besides those of the checkpoint, such as any *.safetensors."""
        if self._plan is None or not self.is_whole or self._start.record.plugins:
            return
        listing, wanted = FolderListing(folder), self._plan.model.wanted
        names = wanted.choose_weights(listing.names, listing.weight_map_of(wanted))
        known = self.checkpoint.weights.present if self.checkpoint else ()
        problem = first_problem(file for name in names if (file := folder / name) not in known)
        if problem:
            yield error("weights", problem)

    def _tokenizer_findings(self) -> Iterator[Finding]:
        plan, start = self._plan, self._start
        if plan is None or start.has("--skip-tokenizer-init", "--io-processor-plugin"):
            return
        folder, mode = plan.tokenizer.folder, start.value("--tokenizer-mode") or "auto"
        if folder is None or mode not in _PLAIN or plan.tokenizer.kind != "folder":
            return
        if not any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
            # Some classes of transformers then create an empty tokenizer, with which vLLM starts.
            if not start.record.plugins and not self.config.get("auto_map"):
                yield warning("tokenizer", f"{folder} has no tokenizer: name one with --tokenizer")
            return
        if fault := vocabulary_fault(folder):
            is_certain = fault.is_fatal and start.is_known and not self.config.get("auto_map")
            yield (error if is_certain else warning)("tokenizer", fault.text)
        yield from small_file_findings(folder, _TOKENIZER_JSON)


def _split_architecture(name: str) -> tuple[str, str]:
    found = _TASK.search(name)
    end = found.start() if found else len(name)
    return name[:end], name[end:]


def _is_in_transformers(name: str) -> bool:
    """Whether transformers has a class of this name, or its source cannot be read. Takes 50 ms."""
    texts = read_transformers("models/*/modeling_*.py")
    return not texts or any(f"class {name}(" in text for text in texts)


def _has_other_weights(folder: Path) -> bool:
    """Whether the folder has weights in files that `find_weight_files` does not find."""
    endings = (".bin", ".pt", ".gguf", ".safetensors")
    return any(path.suffix in endings for path in (*folder.glob("[!.]*"), *folder.glob("*/[!.]*")))
