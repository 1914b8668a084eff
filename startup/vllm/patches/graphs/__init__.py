"""CUDA graphs: their memory, and captures after readiness."""
