"""What the API server imports when the engine is ready."""

import os

IMPORTED_IN = os.getpid()
