"""How the services run."""
