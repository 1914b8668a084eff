"""The connection of the API process and the engine. Read `client`, then `messages`."""
