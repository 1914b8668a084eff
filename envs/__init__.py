"""Environment variables. `registry` declares this program's own. Nothing else reads `os.environ`."""
