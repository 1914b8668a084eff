"""The part of cloudpickle that vLLM's registry uses."""

from pickle import dumps as dumps
