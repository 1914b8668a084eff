"""Causes that vllm-cli itself reports. They have no texts, because they are not searched for in logs."""

from typing import Final

from startup.reports.causes.known_cause import KnownCause


def _own(name: str, title: str, advice: str, *, is_general: bool = False) -> KnownCause:
    return KnownCause(name, title, "", advice, is_general=is_general)


UNKNOWN: Final = _own(
    "unknown",
    "no known cause fits",
    "Read the message, and the log that `Log:` names. If vllm-cli is at fault, report it with `vllm-cli collect-env`.",
    is_general=True,
)
OWN: Final = (
    _own(
        "usage",
        "a flag, value, variable or file of settings is not accepted",
        "Correct the setting that the message names. `vllm-cli serve --help=WORD` shows the flags that contain WORD.",
    ),
    _own(
        "preflight",
        "the preflight has found a fault",
        "Correct the fault that the message names. `--preflight-only` shows all faults. `--preflight warn` starts in "
        "spite of them.",
    ),
    _own(
        "models-file",
        "the file of models has faults",
        "Correct the fault that the message names. `vllm-cli serve --models FILE --preflight-only` shows all faults.",
    ),
    _own(
        "package-missing",
        "a package that the engine needs is not installed",
        "Install the package that the message names into the environment of vllm-cli.",
    ),
    _own(
        "program-not-started",
        "a model's program cannot be started",
        "Name an executable program in `cmd`. If the message names a limit, raise it (`ulimit -n`, `ulimit -u`).",
    ),
    _own(
        "standby-unusable",
        "no standby can run or fork a server",
        "Start `vllm-cli standby`. `vllm-cli standby status` shows the running standby.",
    ),
    _own(
        "socket-activation",
        "the service manager's socket cannot be used",
        "In the .socket unit, use ListenStream= with Accept=no.",
    ),
    _own(
        "keys-or-certificates",
        "a file of API keys or certificates cannot be used",
        "Correct the file that the message names, or its permissions.",
    ),
    _own(
        "startup-timeout",
        "the start or its download took longer than its limit",
        "Find the slow phase in the log. Raise --startup-timeout or --download-timeout.",
    ),
    _own(
        "plain-start",
        "vLLM starts without preloading, and so more slowly",
        "Remove the reason that the message names. `vllm-cli check-hooks` shows hooks that do not fit. If vllm-cli "
        "failed, report the log and `vllm-cli collect-env`. After `vllm-cli caches prune --plain-starts`, starts "
        "preload again.",
        is_general=True,
    ),
    UNKNOWN,
)
"""The causes that are named in `StartupError.cause`."""
