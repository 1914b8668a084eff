"""Loads a compiled model or compiles it. The content of a fake compiled model is a word."""

import json
import logging
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

from vllm import envs
from vllm.compilation.caching import aot_compile_hash_factors
from vllm.compilation.wrapper import TorchCompileWithNoGuardsWrapper
from vllm.crash import crash_at

logger = logging.getLogger(__name__)


def _try_load_aot_compiled_fn(model: Any, aot_compilation_path: str) -> Any:
    try:
        content = Path(aot_compilation_path).read_bytes()
        if content != b"compiled":
            raise ValueError("it does not contain the word")
        logger.info("Directly load AOT compilation from path %s", aot_compilation_path)
        return lambda model: crash_at("compiled model")
    except (OSError, ValueError) as err:
        if Path(aot_compilation_path).exists():
            logger.warning("Compiling model again due to a load failure from %s, reason: %s", aot_compilation_path, err)
        return None


def use_kernel(folder: Path) -> None:
    """Loads a kernel from the cache, or compiles it, as Triton does."""
    group, binary = folder / "__grp__kernel.json", folder / "kernel.cubin"
    if group.exists() and all(Path(path).exists() for path in json.loads(group.read_bytes())["child_paths"].values()):
        return
    print("compiled a kernel", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    binary.write_bytes(b"kernel")
    group.write_text(json.dumps({"child_paths": {binary.name: str(binary)}}))


def load_with_torch(path: str, vllm_config: Any) -> None:
    """Loads a compiled model in the same way as vLLM."""
    import torch

    loaded = torch.compiler.load_compiled_function(path)
    loaded._artifacts.compiled_fn.finalize_loading(vllm_config)  # type: ignore[attr-defined]


class CompiledModel(TorchCompileWithNoGuardsWrapper):
    def __init__(self, vllm_config: Any) -> None:
        self.vllm_config = vllm_config

    def load_or_compile(self) -> None:
        hash_key = sha256(str(aot_compile_hash_factors(self.vllm_config)).encode()).hexdigest()
        folder = envs.cache_root() / "torch_compile_cache" / "torch_aot_compile" / hash_key / "rank_0_0"
        aot_compilation_path = str(folder / "model")
        loaded_fn = _try_load_aot_compiled_fn(self, aot_compilation_path)
        if loaded_fn is not None:
            self.aot_compiled_fn = loaded_fn
            self.aot_compiled_fn(self)
            assert self.aot_compiled_fn.__name__ == "<lambda>", "vLLM calls another function later"
        else:
            self._aot_compilation_path = aot_compilation_path
            compiled = self.aot_compile()
            folder.mkdir(parents=True, exist_ok=True)
            Path(aot_compilation_path).write_bytes(compiled.content)
            logger.info("saved AOT compiled function to %s", aot_compilation_path)
        use_kernel(Path(os.environ.get("TRITON_CACHE_DIR", f"{folder}-{os.getpid()}"), "KEY"))
