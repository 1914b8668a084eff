"""The class of a model, imported by the worker that loads it."""

import os

IMPORTED_IN = os.getpid()
