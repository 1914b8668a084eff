"""Logs as `logs.txt` and `log_settings.txt` write them: short forms of labels, tracebacks and common lines.

A title or an empty line begins a log. After `| ` comes a line of the log. `[CORE]` and the other names of
`_LABELS` stand for a process's label. `@ load_model f > KeyError: 'x'` is a traceback of these functions,
`@ vllm/x.py > …` one of these files. If the line ends with `>`, the traceback is cut before its exception.
`[FAILED]` stands before such a traceback of an engine that has failed to start, `[ARGS]` before arguments.
After `=>` come the expected cause, its line, process and phase, or `nothing`. Indented lines are the
cause's text, or lines of the digest, where `…` stands for any text. Each row `- A => B` makes a log of its
own: A and B replace `<>`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

FOLDER: Final = Path(__file__).parent
CORE: Final = "(EngineCore_DP0 pid=40) ERROR 09-03 11:03:37 [core.py:712] "
INFO: Final = "(APIServer pid=1) INFO 09-03 11:03:00 [utils.py:253] "
_LABELS: Final = {
    "[CORE]": CORE,
    "[INFO]": INFO,
    "[API]": "(APIServer pid=1) ",
    "[WORKER]": "(Worker_TP1 pid=52) ERROR 09-03 11:03:36 [multiproc_executor.py:597] ",
    "[VERSION]": "(APIServer pid=1) INFO 09-03 11:03:00 [api_server.py:1351] vLLM API server version 0.32.0",
    "[V11]": f"{INFO}vLLM API server version 0.11.0",
    "[READY]": "(APIServer pid=1) INFO:     Application startup complete.",
}


class WrittenLog(NamedTuple):
    """A log, and what is expected of its cause."""

    place: str
    lines: list[str]
    found: str
    """The cause's name, line, process and phase, or `nothing`."""
    shown: list[str]
    """Patterns of the cause's text, and of lines of the digest."""


def read_logs(name: str) -> Iterator[WrittenLog]:
    title = ""
    for block in re.split(r"\n\n|\n(?=# )", (FOLDER / name).read_text().strip()):
        lines = block.splitlines()
        if lines[0].startswith("# "):
            title = lines.pop(0)[2:]
        for row in [line[2:] for line in lines if line.startswith("- ")] or [""]:
            values = iter(row.split(" => "))
            filled = [re.sub("<>", lambda _: next(values), line) for line in lines if not line.startswith("- ")]  # noqa: B023
            yield WrittenLog(
                f"{name}: {title}: {row}",
                [each for line in filled if line[0] == "|" for each in _expand(line[2:])],
                next(line[3:] for line in filled if line.startswith("=>")),
                [re.escape(line.strip()).replace("…", ".*") for line in filled if line.startswith("  ")],
            )


def _expand(line: str) -> list[str]:
    """The lines of the log for which the written line stands."""
    if line.startswith("[FAILED]"):
        return [f"{CORE}EngineCore failed to start.", *_expand(f"[CORE]@ {line.removeprefix('[FAILED]')}")]
    if line.startswith("[ARGS]"):
        first = "'model_tag': 'a/b', 'model': 'a/b', 'max_model_len': 4096"
        return [f"{INFO}non-default args: {{{first}, {line.removeprefix('[ARGS]')}}}"]
    name, text = next(((name, line[len(name) :]) for name in _LABELS if line.startswith(name)), ("", line))
    label, found, raised = text.rpartition("@ ") if " >" in text else ("", "", text)
    prefix = _LABELS.get(name, "") + label
    if not found:
        return [_LABELS.get(name, "") + text]
    functions, _, error = raised.partition(" >")
    frames = [line for function in functions.split() for line in _frame(function)]
    return [prefix + line for line in ("Traceback (most recent call last):", *frames, *([error[1:]] if error else []))]


def _frame(function: str) -> list[str]:
    if "." in function:
        return [f'  File "/x/dist-packages/{function}", line 7, in f']
    return [f'  File "/x/vllm/{function}.py", line 7, in {function}', "    call()"]
