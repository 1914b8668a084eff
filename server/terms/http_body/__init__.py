"""The common part of all APIs' JSON bodies: decoding, fields, limits of one request, errors."""
