"""Imported by a worker inside a function during its start."""

import os

IMPORTED_IN = os.getpid()
