"""/v1/chat/completions and its batch, /v1/completions. Begin with `chat.py`."""
