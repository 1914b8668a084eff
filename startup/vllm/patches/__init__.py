"""Changes that are made in vLLM and its libraries while they run. Each has a file of its own."""
