"""Addresses of object stores in place of a model's name: s3://bucket/folder, gs://… and az://…"""

from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from startup.caches import cache_folder

PACKAGES: Final = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs"}
"""The schemes, and the packages that read them; all are in the extra `objectstore`."""
_STREAMING_FORMATS: Final = ("runai_streamer", "runai_streamer_sharded", "modelexpress", "tensorizer")
"""Values of --load-format with which vLLM reads the address itself."""


def is_object_address(name: str) -> bool:
    """Whether the name is an address of an object store."""
    scheme, found, rest = name.partition("://")
    return bool(found) and scheme.lower() in PACKAGES and bool(rest.strip("/"))


def without_file_scheme(name: str) -> str:
    """The path of `file:///path`; any other name as it is."""
    if not name.lower().startswith("file://"):
        return name
    return unquote(urlsplit(name).path)


def objects_cache() -> Path:
    """The folder of models from object stores, in the layout of the hub's cache."""
    return cache_folder() / "objects"


def missing_package(address: str) -> str | None:
    """Why the address cannot be read by this installation, in one line; None if it can."""
    package = PACKAGES[address.partition("://")[0].lower()]
    if find_spec("fsspec") is not None and find_spec(package) is not None:
        return None
    return f"{address} needs the package {package}: pip install '.[objectstore]' in a clone of vllm-cli"


def is_streamed(load_format: str) -> bool:
    """Whether vLLM reads the address itself: with its streaming loaders, by default if installed."""
    if load_format == "auto":
        return find_spec("runai_model_streamer") is not None
    return load_format in _STREAMING_FORMATS
