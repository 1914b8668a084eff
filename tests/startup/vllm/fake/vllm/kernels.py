"""Imported by the API server once the engine is ready."""

import os

IMPORTED_IN = os.getpid()
