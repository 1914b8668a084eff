"""`python -m startup.download` prepares the default model, if it is not on disk, and prints its folder."""

import logging
import sys

from startup.download.obtain import resolve_model
from startup.errors import ModelNotFoundError
from startup.model.request import ModelRequest
from startup.timeline.live_line import LiveLine

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        files = resolve_model(ModelRequest(), LiveLine(sys.stderr).show)
    except ModelNotFoundError as err:
        sys.exit(f"Error: {err}")
    sys.stdout.write(f"{files.path}\n")
