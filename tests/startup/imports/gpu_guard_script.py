"""Imports modules as a forkserver does, with fake GPUs. `test_gpu_guard.py` runs this script."""

import json
import sys

from base.machine.gpu_driver import initialized_driver
from startup.imports import gpu_guard
from startup.vllm.vllm_imports import import_leniently

with gpu_guard.driver_kept_uninitialized():
    failed = import_leniently(sys.argv[1:])

torch = sys.modules["torch"]
print(
    json.dumps(
        {
            "failed": failed,
            "driver": initialized_driver(),
            "unforkable": gpu_guard.why_unforkable(),
            "imported": [name for name in sys.argv[1:] if name in sys.modules],
            "architecture": getattr(sys.modules.get("asks"), "ARCHITECTURE", None),
            "afterwards": torch.cuda._lazy_init.__qualname__,
        }
    )
)
