"""OpenAI's Responses API, /v1/responses. Begin with `serving.py`."""
