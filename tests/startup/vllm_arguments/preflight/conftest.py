"""Fixtures: starts of a vLLM whose parser is the one of `small_parser.py`."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import pytest

from startup.settings.flag import Flag
from startup.vllm_arguments.installed import InstalledVllm
from startup.vllm_arguments.preflight.arguments import GivenStart
from startup.vllm_arguments.vllm_line import VllmLine
from startup.vllm_arguments.vllm_record import Plugin, VllmRecord, flags_of_parser
from tests.startup.session.preflight.conftest import write_safetensors
from tests.startup.vllm import small_parser

CheckStart: TypeAlias = Callable[..., GivenStart]

NAMES = {
    "--tool-call-parser": ("hermes", "llama3_json"),
    "--reasoning-parser": ("deepseek_r1", "qwen3"),
    "--quantization": ("awq", "fp8", "fp8_per_tensor"),
    "--load-format": ("auto", "dummy", "gguf", "hf", "safetensors"),
    "--attention-backend": ("FLASH_ATTN", "TORCH_SDPA"),
    "--config-format": ("hf", "mistral"),
    "--distributed-executor-backend": ("mp", "ray"),
    "architectures": ("BertForSequenceClassification", "LlamaForCausalLM", "Qwen3ForCausalLM"),
    "model types": ("kimi_k2",),
    "model types of transformers": ("bert", "llama", "gpt_oss"),
    "connectors": ("NixlConnector",),
}
VARIABLES = (
    Flag(("VLLM_FLOAT32_MATMUL_PRECISION",), choices=("highest", "high", "medium")),
    Flag(("VLLM_OWN",), choices=("spawn",)),
    Flag(("VLLM_BACKEND",), "lower", choices=("nccl", "shm")),
    Flag(("VLLM_LABELS",), "text", nargs="*", choices=("a", "b")),
)


def write_small_model(path: Path) -> Path:
    """Writes a folder with a small model of which everything can be checked."""
    path.mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 8192}
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text("{}")
    write_safetensors(path / "model.safetensors", {"weight": ("F32", [4], 16)})
    return path


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the package `vllm`."""
    folder = tmp_path_factory.mktemp("site") / "vllm"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def record() -> VllmRecord:
    limits = {"max_num_seqs": (("ge", 1),), "gpu_memory_utilization": (("gt", 0), ("le", 1))}
    return VllmRecord(tuple(flags_of_parser(small_parser.build(), limits)), NAMES, VARIABLES, ("VLLM_OWN",))


@pytest.fixture
def start(package: Path, record: VllmRecord) -> CheckStart:
    """Checks a start of the small vLLM with these arguments, and with a plugin if one is given."""

    def create(
        *arguments: str,
        has_plugin: bool = False,
        is_first: bool = False,
        version: str = "0.32.0+cpu",
        more_flags: Sequence[Flag] = (),
    ) -> GivenStart:
        known = VllmRecord() if is_first else record._replace(flags=(*record.flags, *more_flags))
        known = known._replace(
            installed_plugins=(Plugin("vllm.general_plugins", "own", "own-1.0.dist-info"),) if has_plugin else ()
        )
        return GivenStart(InstalledVllm(version, package), VllmLine.of(arguments, known))

    return create
