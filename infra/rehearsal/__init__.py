"""Rehearsals: simulated gateways that speak the real protocol, on a broker and a store of their own."""
