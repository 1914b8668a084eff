"""OpenAI's Responses API, /v1/responses. Read `serving.py` first."""
