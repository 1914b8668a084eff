"""Imports what vLLM imports late, and writes what programs see of these modules as JSON.

late_modules.py FILE plain|late
"""

import importlib
import inspect
import json
import sys
from contextlib import nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from startup.hook import find_unfit_silently, place_only_for
from startup.imports.late_modules import is_late
from startup.vllm.patches.late_imports import late_imports
from startup.vllm_arguments.installed import require_vllm

_IMPORTED = {
    "vllm.connections": ("aiohttp", "requests"),
    "vllm.usage.usage_lib": ("cpuinfo",),
    "torchvision": ("torchvision.datasets", "torchvision.models"),
}
"""Module -> what it imports late, unless another module has imported it before."""
_NAMES = {
    "aiohttp": "ClientSession",
    "cpuinfo": "get_cpu_info",
    "requests": "get",
    "torchvision.datasets": "CIFAR10",
    "torchvision.models": "resnet18",
}


def main(file: str, mode: str) -> None:
    place_only_for(require_vllm().release)
    find_unfit_silently()
    late: list[str] = []
    seen: dict[str, Any] = {}
    for importer, names in _IMPORTED.items():
        with late_imports() if mode == "late" else nullcontext(), suppress(ModuleNotFoundError):
            importlib.import_module(importer)
        present = [name for name in names if name in sys.modules]
        late += [name for name in present if is_late(name)]
        seen |= {name: _describe(name, sys.modules[name]) for name in present}
    Path(file).write_text(json.dumps({"late": late, "seen": seen}))


def _describe(name: str, module: Any) -> dict[str, Any]:
    """What programs can do with a module. A late module gets each of these uses first in its own process."""
    answer = {
        "is module": inspect.ismodule(module),
        "own": module.__dict__[_NAMES[name]].__qualname__,
        "names": sorted(key for key in vars(module) if not key.startswith("__"))
        == sorted(key for key in dir(module) if not key.startswith("__")),
        "count": len(dir(module)),
        "file": module.__file__,
        "missing": hasattr(module, "no_such_name"),
        "type": str(type(module)),
        "identity": importlib.import_module(name) is module is sys.modules[name],
        "spec": find_spec(name) is module.__spec__,
    }
    module.added = ModuleType("added")
    exec(f"from {name} import added", namespace := {})
    answer["patched for all"] = namespace["added"] is module.added
    answer["reloaded"] = importlib.reload(module) is module
    return answer


main(*sys.argv[1:])
