"""One log format for all processes: level, time, process, module, message."""

import logging
import sys

_FORMAT = "%(levelname)s %(asctime)s ({process}) %(name)s: %(message)s"


def configure_logging(level: str, *, process: str) -> None:
    """Sends the logs of this project to standard error; other libraries speak from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT.format(process=process), datefmt="%m-%d %H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("vllm_cli", "startup", "server", "envs", "uvicorn"):
        logging.getLogger(name).setLevel(level)
