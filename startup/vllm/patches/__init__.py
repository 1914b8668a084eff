"""What is changed in vLLM and its libraries while they run, each change in a file of its own."""
