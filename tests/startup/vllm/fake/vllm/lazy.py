"""What a worker imports inside a function, in the middle of its start."""

import os

IMPORTED_IN = os.getpid()
