"""Clients of servers, and how running servers are found: begin at server_address.py."""
