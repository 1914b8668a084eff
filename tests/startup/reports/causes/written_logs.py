"""Logs as `logs.txt` and `log_settings.txt` write them: short forms of labels, tracebacks and common lines.

After `| ` comes a line of the log. `[CORE]` and the other names of `_LABELS` stand for a process's label.
`@ load_model f > KeyError: 'x'` is a traceback of these functions, `@ vllm/x.py > …` one of these files.
After `=>` come the expected cause, its line, process and phase. Indented lines are the cause's text, or
lines of the digest.
"""

from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
CORE: Final = "(EngineCore_DP0 pid=40) ERROR 09-03 11:03:37 [core.py:712] "
INFO: Final = "(APIServer pid=1) INFO 09-03 11:03:00 [utils.py:253] "
_LABELS: Final = {
    "[CORE]": CORE,
    "[INFO]": INFO,
    "[API]": "(APIServer pid=1) ",
    "[WORKER]": "(Worker_TP1 pid=52) ERROR 09-03 11:03:36 [multiproc_executor.py:597] ",
    "[VERSION]": "(APIServer pid=1) INFO 09-03 11:03:00 [api_server.py:1351] vLLM API server version 0.32.0",
    "[READY]": "(APIServer pid=1) INFO:     Application startup complete.",
}


def expand(line: str) -> list[str]:
    """The lines of the log for which the written line stands."""
    name, text = next(((name, line[len(name) :]) for name in _LABELS if line.startswith(name)), ("", line))
    label, found, raised = text.rpartition("@ ") if " > " in text else ("", "", text)
    prefix = _LABELS.get(name, "") + label
    if not found:
        return [_LABELS.get(name, "") + text]
    functions, _, error = raised.partition(" > ")
    frames = [line for function in functions.split() for line in _frame(function)]
    return [prefix + line for line in ("Traceback (most recent call last):", *frames, error)]


def _frame(function: str) -> list[str]:
    if "." in function:
        return [f'  File "/x/dist-packages/{function}", line 7, in f']
    return [f'  File "/x/vllm/{function}.py", line 7, in {function}', "    call()"]
