"""The router's HTTP server. `app.py` finds the model of a request, and `proxy.py` passes the request on."""
