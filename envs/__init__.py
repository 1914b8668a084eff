"""Environment variables; `registry` declares those of this program. Nothing else reads `os.environ`."""
