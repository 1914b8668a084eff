"""Finds code of others that vLLM runs before it has imported all of its own modules.

Such code may replace names in modules of vLLM: a plugin's `register()`, for example, is called before worker,
scheduler and model are imported, which then take the plugin's names (`from module import name`). Modules that
were imported earlier would keep vLLM's names, silently. So a start with such code imports in vLLM's order.
"""

import re
from collections.abc import Iterator
from typing import Final

from startup.files.model.file_faults import first_bytes
from startup.settings.serve_arguments import ParsedOption
from startup.vllm_arguments.vllm_line import VllmLine

_CLASSES: Final = (
    "--worker-cls",
    "--worker-extension-cls",
    "--scheduler-cls",
    "--logits-processors",
    "--middleware",
    "--distributed-executor-backend",
)
"""Flags whose values name classes, some of them vLLM's own."""
_FILES: Final = ("--reasoning-parser-plugin", "--tool-parser-plugin", "--io-processor-plugin")
"""Flags whose values name files with code, or plugins."""
_WITH_KEYS: Final = ("--kv-transfer-config", "--ec-transfer-config", "--speculative-config", "--compilation-config")
"""Flags with JSON. Some keys name code."""
_FLAGS: Final = (*_CLASSES, *_FILES, *_WITH_KEYS)
_MODELS_CODE: Final = "--trust-remote-code"
"""With this flag, vLLM runs the code in the model's folder, first that of its configuration."""
_MOST_CODE_BYTES: Final = 1 << 20
"""A longer file counts as code that names vLLM."""
_SHORTEST: Final = len("--wo")
_OWN: Final = "vllm."
_KEY: Final = re.compile(r'module_path"|"custom_class"|"backend": ?"(?!vllm\.)[\w]+\.')
"""Matches JSON that names a module: of a connector, of a proposer, of a compiler's backend."""


def foreign_code(line: VllmLine) -> tuple[str, ...]:
    """The names of all such code in a start with this command line, for log lines."""
    plugins = (f"plugin {plugin.name}" for plugin in line.record.installed_plugins if plugin.is_allowed)
    options = [(_whole_name(option.name, line), option) for option in line.options]
    flags = (name for name, option in options if name in _FLAGS and _names_code(name, option))
    files = _files_of_model(line) if any(name == _MODELS_CODE for name, _ in options) else ()
    return tuple(dict.fromkeys((*plugins, *flags, *files)))


def _files_of_model(line: VllmLine) -> Iterator[str]:
    """The files of the model's own code that name vLLM, or the flag if the model is not on disk.

    Plain vLLM runs the code of the model's configuration before it has imported worker and model.
    """
    if line.model_folder is None:
        yield _MODELS_CODE
        return
    for file in sorted(line.model_folder.glob("*.py")):
        if file.is_file() and _names_vllm(first_bytes(file, _MOST_CODE_BYTES)):
            yield file.name


def _names_vllm(code: bytes) -> bool:
    return b"vllm" in code or len(code) == _MOST_CODE_BYTES


def _whole_name(name: str, line: VllmLine) -> str:
    """The flag's name. In a first start, which does not know vLLM's flags, `name` may be an abbreviation."""
    if line.record.flags or len(name) < _SHORTEST:
        return name
    return next((flag for flag in (*_FLAGS, _MODELS_CODE) if flag.startswith(name)), name)


def _names_code(flag: str, option: ParsedOption) -> bool:
    if flag in _FILES:
        return True
    if flag in _CLASSES:
        return any(map(_is_foreign, _names(option)))
    return "module_path" in option.spelling or any(_KEY.search(value) for value in option.values)


def _names(option: ParsedOption) -> Iterator[str]:
    """The names in values such as `a.B`, `["a.B", "c.D"]`."""
    for value in option.values:
        yield from re.findall(r"[\w.:-]+", value)


def _is_foreign(name: str) -> bool:
    return not name.startswith(_OWN) and ("." in name or ":" in name)
