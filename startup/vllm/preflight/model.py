"""Checks the files of model and tokenizer; vLLM reads more formats than the embedded engine.

Errors are only about folders and snapshots whose reading by vLLM is known: other formats of weights or of the
configuration, object stores and overrides of the configuration are left to vLLM.
"""

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from envs.suggestion import did_you_mean
from startup.files.model.checkpoint_folder import folder_problems
from startup.files.model.json_file import read_json_object
from startup.files.model.model_place import ModelPlace, is_offline
from startup.files.model.wanted_files import MISTRAL_WEIGHTS
from startup.session.preflight.checkpoint import CONTENT_CHECKS, Checkpoint, read_checkpoint, small_file_findings
from startup.session.preflight.model_places import check_model_place
from startup.session.preflight.report import Finding, error, warning
from startup.vllm.facts import ARCHITECTURES
from startup.vllm.preflight.arguments import CheckedStart, name_problem

_SAFETENSORS_FORMATS: Final = ("auto", "hf", "safetensors")
"""Values of --load-format with which vLLM reads the files that `read_checkpoint` checks."""
_CONFIG: Final = "config.json"
_MISTRAL_CONFIG: Final = "params.json"
_TOKENIZER_FILES: Final = ("*token*", "vocab*", "merges.txt", "*.tiktoken", "*.model", "tekken*", "*.vocab", "*bpe*")
_TOKENIZER_JSON: Final = ("tokenizer.json", "tokenizer_config.json")
"""Files that every start reads; of others it depends on the model, and a fault is only a warning."""
_INDEX: Final = "model.safetensors.index.json"
_PLAIN: Final = ("auto", "hf")
_QUANTIZED: Final = ("quantization_config", "compression_config")
"""Keys of config.json with which vLLM may choose another method than the flag names."""
_QUANTIZED_FILE: Final = "hf_quant_config.json"
_TASK: Final = re.compile(r"(?:For[A-Z]\w*|LMHeadModel|Model|Classifier|Reward\w*|)$")
"""The end of an architecture's name; vLLM serves some with the class of another end."""


class ModelChecks:
    """The checks of one start; reads each folder once."""

    def __init__(self, start: CheckedStart) -> None:
        self._start = start

    def findings(self) -> Iterator[Finding]:
        """All findings about files that are on disk, or that are nowhere."""
        if self._start.file_plan is None:
            return
        for place in self._start.file_plan.main_places:
            yield from check_model_place(place)
        if self.folder is None:
            return
        faults = list(self._config_findings(self.folder))
        yield from faults
        if any(finding.severity == "error" for finding in faults):
            return  # what else is missing has the same cause
        yield from self._quantization_findings(self.folder)
        yield from self._architecture_findings(self.folder)
        yield from self._weight_findings(self.folder)
        yield from self._tokenizer_findings()

    def downloads(self) -> list[ModelPlace]:
        """The places of which nothing is on disk, and which the hub may have."""
        plan = self._start.file_plan
        if plan is None or is_offline():
            return []
        return [place for place in plan.places if place.kind == "hub" and place.folder is None]

    @cached_property
    def folder(self) -> Path | None:
        """The model's folder or snapshot; None if it is not on disk."""
        return self._start.file_plan.model.folder if self._start.file_plan is not None else None

    @cached_property
    def is_whole(self) -> bool:
        """Whether vLLM will download nothing more of the model."""
        plan = self._start.file_plan
        has_one_cache = not self._start.has("--download-dir")  # else the configuration may be in the hub's
        return plan is not None and (plan.model.kind == "folder" or (is_offline() and has_one_cache))

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json with --hf-overrides; empty if vLLM may read another configuration."""
        if self.folder is None or not self._reads_config_here:
            return {}
        overrides = self._start.value("--hf-overrides")
        content = read_json_object(self.folder / _CONFIG).content
        return {**content, **overrides} if isinstance(overrides, dict) else content

    @cached_property
    def checkpoint(self) -> Checkpoint | None:
        """The weights in a format that vLLM reads itself."""
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

    def _config_findings(self, folder: Path) -> Iterator[Finding]:
        if not self._reads_config_here:
            return
        path = folder / _CONFIG
        if not path.exists():
            if self.is_whole and not self._start.facts.plugins and not any(folder.glob("*.gguf")):
                yield error("config", f"{folder} has no config.json, so it is not a model folder")
        elif problem := read_json_object(path).problem:
            yield error("config", problem)
        elif not self.config.get("model_type") and not self.config.get("architectures"):
            yield warning("config", f"{path} names neither model_type nor architectures")

    def _quantization_findings(self, folder: Path) -> Iterator[Finding]:
        flag, start = "--quantization", self._start
        given = start.value(flag)
        if not isinstance(given, str) or (problem := name_problem(start.facts, flag, given, given)) is None:
            return
        is_quantized = any(key in self.config for key in _QUANTIZED) or (folder / _QUANTIZED_FILE).exists()
        is_certain = bool(self.config) and not is_quantized and not start.facts.plugins
        yield (error if is_certain else warning)("quantization", problem)

    def _architecture_findings(self, folder: Path) -> Iterator[Finding]:
        """A warning: vLLM also serves classes of transformers and of a model's own code."""
        given, known = self.config.get("architectures"), self._start.facts.names.get(ARCHITECTURES, ())
        if not isinstance(given, list) or not given or not known or self.config.get("auto_map"):
            return
        stems, tasks = map(set, zip(*map(_split_architecture, known), strict=True))
        is_known = any(stem in stems and task in tasks for stem, task in map(_split_architecture, map(str, given)))
        if is_known or self._start.has("--model-impl"):
            return
        what = f"{folder / _CONFIG}: this vLLM has no architecture {given[0]!r}{did_you_mean(str(given[0]), known)}"
        yield warning("architecture", f"{what}, and can serve it only if transformers has it")

    def _weight_findings(self, folder: Path) -> Iterator[Finding]:
        if (checkpoint := self.checkpoint) is None:
            return
        # vLLM reads only the files of an index, and prefers safetensors of any name; the check does not.
        has_other_index = checkpoint.weights.index_path is None and (folder / _INDEX).exists()
        is_other_kind = not any(path.suffix == ".safetensors" for path in checkpoint.weights.present)
        is_read = not has_other_index and not (is_other_kind and any(folder.glob("*.safetensors")))
        for finding in checkpoint.findings:
            if finding.check in CONTENT_CHECKS:
                yield finding if is_read else finding._replace(severity="warning")
        if not self.is_whole or self._start.facts.plugins:
            return
        for check, text in folder_problems(folder, checkpoint.weights):
            if check == "no_weights" and not _has_other_weights(folder):
                yield error("weights", text)
            elif check == "shards":
                yield (error if checkpoint.weights.index_path is not None else warning)("weights", text)

    def _tokenizer_findings(self) -> Iterator[Finding]:
        plan, start = self._start.file_plan, self._start
        if plan is None or start.has("--skip-tokenizer-init", "--io-processor-plugin"):
            return
        folder, mode = plan.tokenizer.folder, start.value("--tokenizer-mode") or "auto"
        if folder is None or mode not in _PLAIN or plan.tokenizer.kind != "folder":
            return
        if not any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
            # Some classes of transformers make an empty one, with which vLLM starts.
            if not start.facts.plugins and not self.config.get("auto_map"):
                yield warning("tokenizer", f"{folder} has no tokenizer: name one with --tokenizer")
            return
        for finding in small_file_findings(folder):
            is_certain = any(f"{folder / name} " in finding.message for name in _TOKENIZER_JSON)
            yield finding._replace(severity="error" if is_certain else "warning")


def _split_architecture(name: str) -> tuple[str, str]:
    found = _TASK.search(name)
    end = found.start() if found else len(name)
    return name[:end], name[end:]


def _has_other_weights(folder: Path) -> bool:
    """Whether there are weights in files that `find_weight_files` does not take for weights."""
    endings = (".bin", ".pt", ".gguf", ".safetensors")
    return any(path.suffix in endings for path in (*folder.glob("*"), *folder.glob("*/*")))
