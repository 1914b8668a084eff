"""Changes in vLLM and its libraries while they run, each in a file of its own."""
