"""The connection between the API process and the engine. Read `client`, then `messages`."""
