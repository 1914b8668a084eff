"""What the JSON bodies of all APIs share: decoding, fields, limits of one request, errors."""
