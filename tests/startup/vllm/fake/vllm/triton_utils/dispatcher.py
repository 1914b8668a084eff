"""Replaces kernels in all modules."""

import sys
from typing import Any


def _rebind_kernels(overrides: Any) -> None:
    for module in list(sys.modules.values()):
        assert module not in overrides
