"""Clients of servers, and the search for running servers. Begin with `server_address.py`."""
