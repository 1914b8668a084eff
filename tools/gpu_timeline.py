"""Starts vLLM with a large model, and writes as JSON where the time until the first token goes.

    python -m tools.gpu_timeline OUTPUT SMALL_MODEL COMMAND

The times come from vLLM's log. The part `rest` has what no line of the log explains.
"""

import json
import re
import shlex
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from tests.support.ports import free_port

_LATE: Final = "graphs after readiness"
_SECONDS: Final = {
    "weights": r"Loading weights took ([\d.]+) seconds",
    "compile": r"torch\.compile took ([\d.]+) s in total",
    "profile": r"Initial profiling/warmup run took ([\d.]+) s",
    "JIT warm-up": r"JIT kernel warmup finished in ([\d.]+)s",
    _LATE: r"CUDA graphs are captured, ([\d.]+) s after readiness",
}
"""Part -> the line with its seconds."""
_BETWEEN: Final = {
    "autotune": ("Using FlashInfer.* autotune cache", "Autotuning process ends"),
    "graphs": ("Capturing CUDA graphs", "Graph capturing finished"),
}
"""Part -> the lines with which it begins and ends. It may occur several times."""
_MODEL: Final = Path("build/1.5b")


def divide(lines: Iterable[tuple[float, str]], first_token_s: float) -> dict[str, float]:
    """Part -> seconds, from the log's lines and the seconds since the start at which they were written."""
    parts = dict.fromkeys((*_SECONDS, *_BETWEEN), 0.0)
    begins_s: dict[str, float] = {}
    for at_s, line in lines:
        for part, pattern in _SECONDS.items():
            parts[part] += sum(map(float, re.findall(pattern, line)))
        for part, (begin, end) in _BETWEEN.items():
            if re.search(begin, line):
                begins_s.setdefault(part, at_s)
            elif re.search(end, line):
                parts[part] += at_s - begins_s.pop(part, at_s)
    parts["rest"] = first_token_s - sum(parts.values()) + parts[_LATE]
    return {part: round(seconds, 2) for part, seconds in (parts | {"first token": first_token_s}).items()}


def time_start(command: str) -> dict[str, float]:
    """Starts the server, asks it for a token, and stops it once all CUDA graphs are captured."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    body = json.dumps({"prompt": "Hi", "max_tokens": 1}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
    words, begin_s, first_token_s = [*shlex.split(command), "--port", str(port)], time.monotonic(), 0.0
    lines: list[tuple[float, str]] = []
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        stdout: Any = server.stdout
        reader = threading.Thread(target=lambda: lines.extend((time.monotonic() - begin_s, line) for line in stdout))
        reader.start()
        while not first_token_s and server.poll() is None:
            with suppress(OSError):
                urllib.request.urlopen(request, timeout=60).read()
                first_token_s = time.monotonic() - begin_s
            time.sleep(0.02)
        subprocess.run([sys.executable, "-m", "vllm_cli", "wait", "--graphs", "-q", "--pid", str(server.pid), url])
        time.sleep(1.0)  # the log shows the last graph
        server.terminate()
        reader.join()
    assert first_token_s, "".join(line for _, line in lines)
    return divide(lines, first_token_s)


def main(output: Path, small: Path, command: str) -> None:
    """Times two starts. MODEL in the command stands for the folder of the model, which is made once."""
    if not _MODEL.exists():
        from tools.figures.large_model import make_large_model

        _MODEL.parent.mkdir(exist_ok=True)
        make_large_model(_MODEL, small)
    starts = [time_start(command.replace("MODEL", str(_MODEL))) for _ in range(2)]
    weights_gb = sum(path.stat().st_size for path in _MODEL.glob("*.safetensors")) / 1e9
    speeds = [round(weights_gb / max(start["weights"], 0.01), 2) for start in starts]
    output.write_text(json.dumps({"starts_s": starts, "weights_gb": weights_gb, "weights_gb_per_s": speeds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
