"""What another subcommand than `serve` imports."""

import os

IMPORTED_IN = os.getpid()
