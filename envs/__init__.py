"""Reads environment variables. Only this package reads `os.environ`. `registry` declares our variables."""
