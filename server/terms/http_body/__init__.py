"""JSON bodies of all APIs: decoding, common fields, limits of one request, errors."""
