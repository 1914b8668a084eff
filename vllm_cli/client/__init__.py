"""Clients of servers, and how running servers are found. Begin with `server_address.py`."""
