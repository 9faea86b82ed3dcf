"""The rules, without I/O: what would still hold with another store, broker or orchestrator."""
