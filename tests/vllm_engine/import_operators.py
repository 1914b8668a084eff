"""Imports what an engine's start imports, and writes torch's operators as JSON.

import_operators.py plain FILE         as plain vLLM does in starts that compile
import_operators.py eager FILE PLAIN   as the forkserver does, then what else the answer PLAIN has imported
import_operators.py compiled FILE PLAIN    the same in starts that compile
"""

import importlib
import json
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from startup.hook import find_unfit_silently, place_only_for
from startup.imports.late_modules import is_loaded
from startup.vllm.fork.preload_plan import platform_modules
from startup.vllm.patches.compiler import compiler_imported
from startup.vllm.patches.late_imports import late_imports
from startup.vllm.patches.placing import place_hooks
from startup.vllm.vllm_imports import import_leniently
from startup.vllm_arguments.installed import require_vllm

_USED_OF_FLASHINFER = ("flashinfer.autotuner", "flashinfer.fused_moe.utils")
_LATE = ("flashinfer", "flashinfer.comm", "flashinfer.fused_moe", "torchvision")
_NOT_NEEDED = ("cutlass", "flashinfer.decode", "torchvision.models", "torch.distributed.checkpoint")


def main(mode: str, file: str, plain: str = "") -> None:
    vllm = require_vllm()
    answer: dict[str, Any] = {}
    if mode != "plain":
        is_eager = mode == "eager"
        place_only_for(vllm.release)
        find_unfit_silently()
        place_hooks("forkserver")
        with late_imports(in_engine=True), compiler_imported("deferred" if is_eager else "now"):
            import_leniently((*platform_modules(vllm, is_eager=is_eager), *_USED_OF_FLASHINFER))
        answer["first"] = list(map(str, torch._C._jit_get_all_schemas())), len(sys.modules)
        answer["late"] = [name for name in _NOT_NEEDED if is_loaded(name)]
        missing = [name for name in json.loads(Path(plain).read_text())["modules"] if not is_loaded(name)]
    else:
        missing = list(platform_modules(vllm, is_eager=False))
    for name in missing:
        with suppress(Exception):  # a module that needs a GPU or a missing package
            importlib.import_module(name)
    operators = sorted(str(schema) for schema in torch._C._jit_get_all_schemas())
    names = {name: _kinds_of(sys.modules[name]) for name in _LATE if name in sys.modules}
    Path(file).write_text(json.dumps(answer | {"operators": operators, "modules": list(sys.modules), "names": names}))


def _kinds_of(module: ModuleType) -> dict[str, str]:
    values = {name: getattr(module, name) for name in dir(module) if not name.startswith("__")}
    return {name: "module" if isinstance(value, ModuleType) else str(type(value)) for name, value in values.items()}


main(*sys.argv[1:])
