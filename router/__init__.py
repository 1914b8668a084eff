"""The router of `vllm-cli serve --models`: many models behind one port. Begin with `router.py`."""
