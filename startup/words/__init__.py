"""The command line of `serve`: begin at serve_command.py; table.py lists all flags."""
