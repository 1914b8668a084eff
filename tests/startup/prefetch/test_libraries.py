"""Torch's libraries are found without importing torch."""

import subprocess
import sys
from pathlib import Path

from startup.prefetch.process import plan_libraries


def test_libraries_of_torch_are_found_without_importing_it() -> None:
    script = (
        "import sys; from startup.prefetch.process import plan_libraries; print(*plan_libraries());"
        "assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    found = [Path(word).name for word in result.stdout.split()]
    assert "libtorch_cpu.so" in found
    assert all(path.is_file() for path in plan_libraries())
