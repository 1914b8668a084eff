"""OpenAI's APIs: /v1/chat/completions with its batch variant, and /v1/completions. Read `chat.py` first."""
