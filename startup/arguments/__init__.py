"""The command line of `serve`. Begin with `serve_command.py`. `table.py` lists all flags."""
