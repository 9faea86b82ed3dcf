"""Payload formats, one a file: bytes of messages to columns of raw values."""
