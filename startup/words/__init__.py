"""The command line of `serve`. Begin at serve_command.py; table.py lists all flags."""
