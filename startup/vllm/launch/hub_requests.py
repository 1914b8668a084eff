"""Prevents vLLM's requests to the Hugging Face hub if all files that vLLM reads are on disk.

vLLM sends a dozen requests to the hub in each start, even for files on disk. With HF_HUB_OFFLINE, vLLM uses
the folder of the downloaded snapshot instead of the model's name. The launcher sets the variable only if vLLM
needs nothing else from the hub, such as code of other repositories or adapters that clients name.
"""

import logging
from collections.abc import Mapping
from typing import Any, Final

from base.errors import with_causes
from envs import environment, foreign
from envs.registry import env
from startup.files.model.file_faults import read_json_object
from startup.files.model.file_plan import FilePlan
from startup.hook import uses
from startup.processes.state import forbid_hub_requests
from startup.vllm_arguments.foreign_code import foreign_code
from startup.vllm_arguments.vllm_line import VllmLine

logger = logging.getLogger(__name__)

_UNSURE_FLAGS: Final = (
    "--trust-remote-code",
    "--download-dir",
    "--hf-config-path",
    "--hf-overrides",
    "--generation-config",
    "--lora-modules",
    "--default-mm-loras",
    "--model-impl",
    "--speculative-config",
    "--kv-transfer-config",
)
"""Flags that name other repositories, or code in them, so that vLLM may need the hub."""

_UNSURE_VARIABLES: Final = ("VLLM_USE_MODELSCOPE", "VLLM_MODEL_REDIRECT_PATH", "VLLM_ALLOW_RUNTIME_LORA_UPDATING")
_LORA_RESOLVERS: Final = "VLLM_LORA_RESOLVER_"
_KNOWN_PARTS: Final = ("quantization_config", "compression_config", "text_config")


def forbid_requests(line: VllmLine, plan: FilePlan) -> bool:
    """Sets HF_HUB_OFFLINE if vLLM's processes need nothing from the hub. Returns whether it has done so."""
    if not uses("offline hub") or env.HF_HUB_OFFLINE.get() or not _has_all(line, plan):
        return False
    forbid_hub_requests()
    logger.debug("everything is on disk: vLLM makes no request to the hub")
    return True


def is_caused_by_offline(err: BaseException) -> bool:
    """Whether the error, or one of its causes, is one of the hub's client, which lacks something on disk."""
    return any(type(each).__module__.startswith("huggingface_hub.") for each in with_causes(err))


def _has_all(line: VllmLine, plan: FilePlan) -> bool:
    is_unsure = bool(foreign_code(line)) or line.has(*_UNSURE_FLAGS) or any(map(foreign.text_of, _UNSURE_VARIABLES))
    if is_unsure or any(name.startswith(_LORA_RESOLVERS) for name in environment.snapshot()):
        return False
    if plan.model.kind != "snapshot" or plan.model.folder is None or not plan.is_on_disk:
        return False
    return _is_plain(read_json_object(plan.model.folder / "config.json").content)


def _is_plain(config: Mapping[str, Any]) -> bool:
    """Whether the model uses no code and no parts, such as a vision tower, from other repositories."""
    parts = [name for name in config if name.endswith("_config") and name not in _KNOWN_PARTS]
    return bool(config) and "auto_map" not in config and not parts
