"""Parts of the server that all requests need, such as admission, served models, readiness and drain."""
