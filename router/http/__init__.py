"""HTTP of the router. `app.py` finds the model of a request, `proxy.py` passes the request on."""
