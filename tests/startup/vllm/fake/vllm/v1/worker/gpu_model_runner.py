"""Runs models on a GPU."""

import os

IMPORTED_IN = os.getpid()
