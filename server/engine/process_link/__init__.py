"""What connects the API process and the engine: read `client`, then `messages`."""
