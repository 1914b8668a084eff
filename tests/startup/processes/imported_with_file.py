"""A module that keeps a file open, as the driver of a GPU does, and registers an exit function."""

import atexit
import os

FILE = os.open(os.devnull, os.O_RDONLY)

atexit.register(print, "the exit function of an import")
