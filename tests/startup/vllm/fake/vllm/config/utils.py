"""Hashes parts of the configuration by the names and values of their fields."""

import hashlib
import json
from typing import Any


def get_hash_factors(config: Any, ignored_factors: set[str]) -> dict[str, Any]:
    return {name: value for name, value in vars(config).items() if name not in ignored_factors}


def hash_factors(items: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(items, sort_keys=True).encode()).hexdigest()
