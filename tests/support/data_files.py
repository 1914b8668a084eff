"""Reads the YAML files beside tests. Their entries have a schema, so that a misspelt key is an error."""

from pathlib import Path
from typing import TypeVar

import msgspec
import yaml

Entry = TypeVar("Entry")


def read_yaml(path: Path, kind: type[Entry]) -> list[Entry]:
    """The entries of a file, which is a list of objects of this type."""
    content = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    try:
        return msgspec.convert(content, list[kind])  # type: ignore[valid-type]
    except msgspec.ValidationError as err:
        raise ValueError(f"{path.name}: {err}") from err
