"""Prevents vLLM's requests to the Hugging Face hub if all files that vLLM reads are on disk.

vLLM sends a dozen requests to the hub in each start, even for files on disk. With HF_HUB_OFFLINE, vLLM uses
the folder of the downloaded snapshot instead of the model's name. The launcher sets the variable only if vLLM
needs nothing else from the hub, such as code of other repositories or adapters that clients name.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from base.errors import with_causes
from envs import environment, foreign
from envs.registry import env
from startup.files.download.obtain import begin_download
from startup.files.model.file_faults import read_json_object
from startup.files.model.file_plan import Download, FilePlan
from startup.files.model.model_place import without_file_scheme
from startup.hook import uses
from startup.processes.state import forbid_hub_requests
from startup.settings.config import DEFAULT_MODEL_ID
from startup.vllm_words.command_line import CommandLine
from startup.vllm_words.facts import read_plugins

logger = logging.getLogger(__name__)

_UNSURE_FLAGS: Final = (
    "--trust-remote-code", "--download-dir", "--hf-config-path", "--hf-overrides", "--generation-config",
    "--speculative-config", "--lora-modules", "--default-mm-loras", "--reasoning-parser-plugin",
    "--tool-parser-plugin", "--logits-processors", "--io-processor-plugin", "--middleware", "--worker-cls",
    "--worker-extension-cls", "--scheduler-cls", "--kv-transfer-config", "--model-impl",
)  # fmt: skip
"""Flags that name code or other repositories, so that vLLM may need the hub."""

_UNSURE_VARIABLES: Final = ("VLLM_USE_MODELSCOPE", "VLLM_MODEL_REDIRECT_PATH", "VLLM_ALLOW_RUNTIME_LORA_UPDATING")
_LORA_RESOLVERS: Final = "VLLM_LORA_RESOLVER_"
_KNOWN_PARTS: Final = ("quantization_config", "compression_config", "text_config")


def forbid_requests(line: CommandLine, plan: FilePlan) -> bool:
    """Sets HF_HUB_OFFLINE if vLLM's processes need nothing from the hub. Returns whether it has done so."""
    if not uses("offline hub") or env.HF_HUB_OFFLINE.get() or not _has_all(line, plan):
        return False
    forbid_hub_requests()
    logger.debug("everything is on disk: vLLM makes no request to the hub")
    return True


def is_caused_by_offline(err: BaseException) -> bool:
    """Whether the error, or one of its causes, is one of the hub's client, which lacks something on disk."""
    return any(type(each).__module__.startswith("huggingface_hub.") for each in with_causes(err))


def _has_all(line: CommandLine, plan: FilePlan) -> bool:
    is_unsure = line.has(*_UNSURE_FLAGS) or any(map(foreign.text_of, _UNSURE_VARIABLES))
    if is_unsure or any(name.startswith(_LORA_RESOLVERS) for name in environment.snapshot()):
        return False
    if plan.model.kind != "snapshot" or plan.model.folder is None or not plan.is_on_disk:
        return False
    is_plain = _is_plain(read_json_object(plan.model.folder / "config.json").content)
    return is_plain and not any(read_plugins().values())  # plugins may use the hub at any time


def _is_plain(config: Mapping[str, Any]) -> bool:
    """Whether the model uses no code and no parts, such as a vision tower, from other repositories."""
    parts = [name for name in config if name.endswith("_config") and name not in _KNOWN_PARTS]
    return bool(config) and "auto_map" not in config and not parts


def with_folders(line: CommandLine, folders: Mapping[Download, Path]) -> CommandLine:
    """Replaces addresses of model and tokenizer in the line by folders. The served name does not change."""
    paths = dict(_find_paths(line.file_plan, folders)) if line.file_plan is not None else {}
    return (line.with_served_name() if line.model in paths else line).with_paths(paths)


def fetch_before_start(line: CommandLine, timeout_s: float | None) -> CommandLine:
    """Downloads models from object stores before a plain start. Returns the line with the models' folders.

    Raises:
        ModelNotFoundError: a download has failed.
    """
    plan = line.file_plan
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
        elif place.kind == "folder" and place.name == DEFAULT_MODEL_ID:
            yield place.name, str(place.folder)
        elif place.kind == "folder" and without_file_scheme(place.name) != place.name:
            yield place.name, without_file_scheme(place.name)
