"""Payload formats, one a file. Each turns messages into the same `records.Records`, as the device's profile says."""
