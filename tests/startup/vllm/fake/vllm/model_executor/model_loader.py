"""Imported by a subcommand other than `serve`."""

import os

IMPORTED_IN = os.getpid()
