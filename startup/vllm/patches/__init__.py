"""Changes that are made in vLLM and its libraries while they run; each has a file of its own."""
