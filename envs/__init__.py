"""Reads environment variables. No other package reads `os.environ`. `registry` declares our own variables."""
