"""HTTP of the router: `app.py` decides which model a request goes to, `proxy.py` passes it on."""
