"""Changes to vLLM and its libraries at run time. Each change has a file of its own."""
