"""As much of it as vLLM's registry needs here."""

from pickle import dumps as dumps
