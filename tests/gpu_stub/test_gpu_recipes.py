"""Command lines of vLLM's documentation that start with plain vLLM also start here, twice in a row."""

import json
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from tests.gpu_stub.gpu_server import MODEL, GpuServer

_TEXTS: Final = ["hello world", "the capital of france is paris"]
_TOOL: Final = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def _chat(server: GpuServer) -> Any:
    messages = [{"role": "user", "content": server.PROMPT}]
    wanted = {"messages": messages, "tools": [_TOOL], "max_tokens": server.MAX_TOKENS, "skip_special_tokens": False}
    answer = server.post("/v1/chat/completions", **wanted, temperature=0, ignore_eos=True)
    return answer["choices"], answer["usage"]


def _embed(server: GpuServer) -> Any:
    return server.post("/v1/embeddings", input=_TEXTS)["data"]


@dataclass(frozen=True)
class Recipe:
    """A command line of vLLM's documentation."""

    name: str
    arguments: tuple[str, ...]
    """`@name` stands for the folder of a model."""
    model: str = ""
    """The model's name. Empty for SmolLM2-135M."""
    ask: Callable[[GpuServer], Any] = GpuServer.generate
    variables: Mapping[str, str] = field(default_factory=dict)
    refusal: str = ""
    """The error with which `vllm serve` ends. Empty if it starts."""
    own_refusal: str = ""
    """The preflight's error instead, once it knows vLLM's flags. Empty if vLLM itself refuses."""


_LENGTH: Final = ("--max-model-len", "2048")
_YARN: Final = {"rope_type": "yarn", "rope_theta": 100000.0, "factor": 16.0, "original_max_position_embeddings": 8192}
_LONG: Final = json.dumps({"max_position_embeddings": 131072, "rope_parameters": _YARN})
_ENCODER: Final = ("--load-format", "dummy", "--skip-mm-profiling")
"""Dummy weights, because transformers saves weights under other names than vLLM reads.

The encoder does not run, because its convolutions need cuDNN and a GPU. So these recipes request only text.
"""
_LORA: Final = ("--enable-lora", "--lora-modules", "adapter=@adapter")
_NIXL: Final = json.dumps({"kv_connector": "NixlConnector", "kv_role": "kv_both"})
_CONNECTOR: Final = json.dumps(
    {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_producer",
        "kv_connector_extra_config": {"shared_storage_path": "@storage"},
    }
)


def _draft(method: str, **options: Any) -> tuple[str, ...]:
    settings = {"method": method, "num_speculative_tokens": 3, **options}
    return (*_LENGTH, "--speculative-config", json.dumps(settings))


_RECIPES: Final = [
    Recipe("LoRA", (*_LENGTH, *_LORA), ask=lambda server: server.generate(model="adapter")),
    Recipe("speculation with ngrams", _draft("ngram", prompt_lookup_max=4)),
    Recipe("speculation with a draft model", _draft("draft_model", model="@llama")),
    Recipe("AWQ", _LENGTH, model="awq"),
    Recipe(
        "expert parallelism",
        (*_LENGTH, "--tensor-parallel-size", "2", "--enable-expert-parallel"),
        model="experts",
        ask=GpuServer.usage,
        variables={"STUB_GPUS": "2"},
    ),
    Recipe("images", (*_LENGTH, *_ENCODER, "--limit-mm-per-prompt", '{"image": 1}'), model="llava"),
    Recipe("embeddings", ("--runner", "pooling"), model="embedder", ask=_embed),
    Recipe("KV offloading", (*_LENGTH, "--kv-offloading-size", "1")),
    Recipe("KV producer", (*_LENGTH, "--kv-transfer-config", _CONNECTOR)),
    Recipe("two API servers", (*_LENGTH, "--api-server-count", "2")),
    Recipe("model runner V1", _LENGTH, variables={"VLLM_USE_V2_MODEL_RUNNER": "0"}),
    Recipe("weights and KV cache in FP8", (*_LENGTH, "--quantization", "fp8", "--kv-cache-dtype", "fp8")),
    Recipe("long context", ("--max-model-len", "131072", "--hf-overrides", _LONG, "--max-num-batched-tokens", "4096")),
    Recipe(
        "tools and reasoning",
        (*_LENGTH, "--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--reasoning-parser", "qwen3"),
        model="qwen3",
        ask=_chat,
    ),
]
_REFUSED: Final = [
    Recipe("NIXL", (*_LENGTH, "--kv-transfer-config", _NIXL), refusal="NIXL is not available"),
    Recipe(
        "LoRA of a higher rank",
        (*_LENGTH, *_LORA, "--max-lora-rank", "1"),
        refusal="LoRA rank 8 is greater than max_lora_rank 1",
        own_refusal="has rank 8, --max-lora-rank allows 1",
    ),
    Recipe(
        "data parallelism with Ray",
        (*_LENGTH, "--data-parallel-size", "2", "--data-parallel-backend", "ray"),
        variables={"STUB_GPUS": "2"},
        refusal="Please install Ray with `pip install ray`",
        own_refusal="needs the package ray: pip install ray",
    ),
]


@pytest.fixture(scope="module")
def start(home: Path, tmp_path_factory: pytest.TempPathFactory):
    """Starts a recipe. All recipes share the caches of kernels. Each recipe has its own profiles."""
    from tests.gpu_stub.recipe_models import WRITERS

    models = tmp_path_factory.mktemp("models")

    def folder_of(name: str) -> Path:
        folder = models / name
        if not folder.exists():
            folder.mkdir()
            WRITERS.get(name, lambda _: None)(folder)
        return folder

    def with_folders(argument: str) -> str:
        for name in ("storage", *WRITERS):
            if f"@{name}" in argument:
                argument = argument.replace(f"@{name}", str(folder_of(name)))
        return argument

    def start_recipe(recipe: Recipe, launcher: str) -> GpuServer:
        arguments = [*map(with_folders, recipe.arguments), "--enforce-eager"]
        variables = {"VLLM_CACHE_ROOT": str(home / "kept" / recipe.name.replace(" ", "-")), **recipe.variables}
        model = folder_of(recipe.model) if recipe.model else MODEL
        return GpuServer(launcher, *arguments, folder=home, environment=variables, model=model)

    return start_recipe


@pytest.mark.parametrize("recipe", _RECIPES, ids=lambda recipe: recipe.name)
def test_the_first_and_the_second_start_answer_as_plain(start, recipe):
    with start(recipe, "plain") as server:
        expected = recipe.ask(server.wait_ready())
    for _ in range(2):
        with start(recipe, "ours") as server:
            assert recipe.ask(server.wait_ready()) == expected
            assert server.terminate(signal.SIGTERM) == 0


@pytest.mark.parametrize("recipe", _REFUSED, ids=lambda recipe: recipe.name)
def test_what_plain_refuses_ends_with_the_same_reason(start, recipe):
    for launcher in ("plain", "ours", "ours"):  # the last one would preload
        with start(recipe, launcher) as server:
            code = server.process.wait(300)
            assert code == 3 if launcher == "ours" else code
            own = recipe.own_refusal if launcher == "ours" else ""
            assert any(refusal in server.log for refusal in (recipe.refusal, own) if refusal)
