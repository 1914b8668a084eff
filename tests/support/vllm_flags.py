"""vLLM's flags, in the table of all flags. `vllm_engine/test_vllm_record.py` compares the table with vLLM."""

from typing import Final

from startup.arguments.table import FLAGS
from startup.settings.flag import Flag

_OWN_PREFIXES: Final = (
    *("--engine", "--http-", "--api-key-", "--startup-", "--prefetch", "--preflight", "--json", "--log-format"),
    *("--drain-grace", "--standby", "--compile-cache", "--cuda-graphs", "--download-timeout", "--idle-", "--models"),
    *("--memory-budget", "--max-running", "--max-wait", "--on-swap", "--listen-when-ready", "--restart", "--web-page"),
)


def is_own(flag: Flag) -> bool:
    return flag.name.startswith(_OWN_PREFIXES)


VLLM_NAMES: Final = {name for flag in FLAGS if not is_own(flag) for name in flag.options}
