"""What runs, when, in which order: Prefect flows, one file a flow; no logic."""
