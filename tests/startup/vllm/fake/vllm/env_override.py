"""Patches a compiler on `import vllm`, if it can be imported, as vLLM patches Inductor's lowerings."""

import os

patched_in: list[int] = []


def _patch_inductor_fallback_allow_list() -> None:
    if "FAKE_VLLM_TORCH" not in os.environ:
        return
    try:
        from torch._inductor import lowering
    except ImportError:
        return
    lowering.fake_vllm_patched = True  # type: ignore[attr-defined]
    patched_in.append(os.getpid())


_patch_inductor_fallback_allow_list()
