"""A script for vLLM's Python: lists the fields of vLLM's requests and responses.

A union has the fields of its members.
"""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel


def fields_of(kind: Any) -> set[str]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {field.alias or name for name, field in kind.model_fields.items()}
    return set().union(*(fields_of(member) for member in get_args(kind)))


names = json.loads(Path(sys.argv[1]).read_text())
found = {name: sorted(fields_of(getattr(import_module(module), name))) for module, name in names}
Path(sys.argv[2]).write_text(json.dumps(found))
