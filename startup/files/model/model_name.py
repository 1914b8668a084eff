"""The forms of a model's name: on the hub, as GGUF, and as other tools write it."""

import re
import shlex
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from envs.foreign import expand_home
from startup.files.model.file_faults import first_bytes
from startup.files.model.hub_settings import hub_endpoints

_HUB_ID: Final = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_GGUF_ID: Final = re.compile(r"(?i)\w[\w.-]*/\w[\w.-]*(:[^\s:\\]+|(?<=[-_.]gguf))")
"""A name by which llama.cpp loads a model from the hub: a repository, and any part of a file's name.

Without this part, llama.cpp chooses a file itself, and only the repository's name shows its format.
"""
_REVISION: Final = re.compile(r"(?i)main|master|latest|refs/\S+|[0-9a-f]{40}|v\d+(\.\d+)*")
"""Words after a colon that other tools read as a branch, a commit or a version."""
_HUB: Final = ("huggingface.co", "hf.co", "hf-mirror.com")
_OLLAMA: Final = ("ollama.com", "ollama.ai", "registry.ollama.ai")
_DOCKER: Final = ("docker.io", "index.docker.io", "registry-1.docker.io", "hub.docker.com")
_MODELSCOPE: Final = ("modelscope.cn", "modelscope.com", "modelscope.ai")
_HOSTS: Final = (*_HUB, *_OLLAMA, *_DOCKER, *_MODELSCOPE)
_PAGES: Final = ("tree", "blob", "resolve", "raw", "commit", "commits", "discussions", "settings")
"""Words in an address on the hub after the repository's name. A revision follows the first four."""
_NO_MODELS: Final = ("datasets", "spaces", "collections", "docs", "papers", "blog")
_MAGIC: Final = b"GGUF"
_STORES: Final = ("s3", "gs", "az")
_OF_WINDOWS: Final = re.compile(r"([A-Za-z]):[\\/](.*)")
_OF_OLLAMA: Final = re.compile(r"(library/)?[\w.-]+:[\w.-]+")
_TAG: Final = re.compile(r"(?i)((?:\bUD-)?\w+?)(?:-\d{5}-of-\d{5})?\.gguf")


def is_hub_id(name: str) -> bool:
    """Whether the name has the form of a model id on the hub."""
    return _HUB_ID.fullmatch(name) is not None and name.partition("/")[0].lower() not in _HOSTS


def is_gguf_id(name: str) -> bool:
    """Whether the name has the form by which llama.cpp loads a model from the hub."""
    repository, _, part = name.partition(":")
    is_revision = _REVISION.fullmatch(part) is not None and "gguf" not in repository.lower()
    is_of_others = _OF_OLLAMA.fullmatch(name) is not None or repository.partition("/")[0].lower() in _HOSTS
    return _GGUF_ID.fullmatch(name) is not None and not is_revision and not is_of_others


def unread_problem(name: str) -> str | None:
    """Why the embedded engine reads no model of this name, and what to do instead. None for others."""
    scheme, found, _ = name.partition("://")
    if found and scheme.lower() in _STORES:
        return (
            "is in an object store, from which the embedded engine does not read: mount the bucket and give a folder, "
            "or give --engine vllm"
        )
    if (arguments := _gguf_arguments(name)) is not None:
        return (
            "is a GGUF model, which the embedded engine does not read: start llama.cpp's server by `cmd: llama-server "
            f"--port ${{PORT}} {arguments}` in a file for --models"
        )
    return None


def _gguf_arguments(name: str) -> str | None:
    """The arguments by which llama-server loads a GGUF model. None for any other model."""
    path = Path(expand_home(name))
    if path.is_dir():
        has_others = any(True for ending in ("safetensors", "bin") for _ in path.glob(f"*.{ending}"))
        path = next(iter(sorted(path.glob("[!.]*.gguf"))), path)
        return None if has_others or path.is_dir() else f"-m {shlex.quote(str(path))}"
    if path.suffix.lower() == ".gguf" or first_bytes(path, len(_MAGIC)) == _MAGIC:
        return f"-m {shlex.quote(name)}"
    return f"-hf {name}" if is_gguf_id(name) else None


def other_form(name: str) -> str | None:
    """What to write instead of a name as another tool writes it. None for any other name."""
    from envs.suggestion import changed_word, plain_word  # noqa: PLC0415 - only after a failure

    if (advice := changed_word(name)) is not None:
        return advice
    plain = plain_word(name).strip().strip("\"'`").strip()
    if (found := _OF_WINDOWS.fullmatch(plain)) is not None:
        folders = found[2].replace("\\", "/")
        return f"is a path of Windows: give the path in this system, such as /mnt/{found[1].lower()}/{folders}"
    plain = plain.replace("\\", "/").rstrip("/")
    if advice := _by_address(plain) or _by_revision(plain):
        return advice
    is_name = is_hub_id(plain) or is_gguf_id(plain) or Path(expand_home(plain)).exists()
    return _write(plain) if plain not in ("", name) and is_name else None


def _write(words: str) -> str:
    return f"is written in the form of another tool: write {words}"


def _by_address(name: str) -> str | None:
    """What to write instead of an address, with or without its scheme."""
    scheme, _, rest = name.partition(":") if name.startswith("hf:") else name.rpartition("://")
    host, _, path = rest.partition("/")
    scheme, host = scheme.lower(), host.lower().removeprefix("www.")
    is_page = scheme in ("http", "https")
    mirrors = [urlsplit(endpoint).netloc.lower() for endpoint in hub_endpoints()]
    if scheme == "hf" or (host in _HUB and (is_page or not scheme)) or (is_page and host in mirrors):
        return _of_hub(rest.lstrip("/") if scheme == "hf" else path)
    if scheme == "ollama" or host in _OLLAMA or _OF_OLLAMA.fullmatch(name):
        return "is a name of Ollama: write OWNER/MODEL of the Hugging Face hub"
    if scheme in ("docker", "oci") or host in _DOCKER:
        image = (path if host in _DOCKER else rest).removeprefix("r/")
        return (
            f"is an image in a registry: copy its model into a folder, and give the folder. A model of Docker Hub is "
            f"served by `llama-server -dr {image} --port ${{PORT}}` as `cmd` in a file for --models"
        )
    if scheme == "modelscope" or host in _MODELSCOPE:
        model = (path if host in _MODELSCOPE else rest).removeprefix("models/")
        model = "/".join(model.split("/")[:2])
        return f"is on ModelScope: set VLLM_USE_MODELSCOPE=1, and write {model} --engine vllm"
    if is_page or scheme in ("git", "ssh"):
        return "is an address that no engine reads: download the model, and give its folder"
    return None


def _of_hub(address: str) -> str:
    """What to write instead of a path on the hub's pages."""
    path = unquote(urlsplit(f"//h/{address}").path).strip("/")
    words = path.removeprefix("models/").split("/")
    pages = [place for place, word in enumerate(words) if place and word in _PAGES]
    end = pages[0] if pages else min(len(words), 2)
    model = "/".join(words[:end]).removesuffix(".git")
    if not model or words[0] in _NO_MODELS:
        return "names no model on the hub: write OWNER/MODEL"
    has_revision = end < len(words) and words[end] in _PAGES[:4]
    rest = words[end + 1 :] if has_revision else []
    num_words = 3 if rest[:1] == ["refs"] else 1  # as in refs/pr/1
    revision = "/".join(rest[:num_words])
    if rest and (tag := _TAG.search(rest[-1])) is not None:
        model = f"{model}:{tag[1]}"
    return _by_revision(model) or _write(_with_revision(model, revision))


def _by_revision(name: str) -> str | None:
    """What to write instead of `repository@revision`, `repository:revision` or `repository/tree/revision`."""
    words = name.split("/")
    if len(words) > 3 and words[2] in _PAGES[:4] and is_hub_id("/".join(words[:2])):
        return _of_hub(name)
    model, found, revision = name.partition("@" if "@" in name else ":")
    is_name = is_hub_id(model) and (found == "@" or "/" in model) and ":" not in revision
    if not revision or not is_name or "://" in name or is_gguf_id(name):
        return None
    return _write(_with_revision(model, revision))


def _with_revision(model: str, revision: str) -> str:
    return model if revision in ("", "main") else f"{model} --revision {revision}"
