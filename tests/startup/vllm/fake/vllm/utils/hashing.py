"""The hash function of texts."""

import hashlib
from typing import Any


def safe_hash(data: bytes, usedforsecurity: bool = True) -> Any:
    return hashlib.sha256(data, usedforsecurity=usedforsecurity)
