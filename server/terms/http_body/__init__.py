"""What all APIs share of JSON bodies: decoding, fields, limits of one request, errors."""
