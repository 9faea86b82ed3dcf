"""The embedded services: child processes on loopback, under one data folder, without Docker or root."""
