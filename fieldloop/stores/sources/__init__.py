"""Where data comes from besides the broker's stream: one kind of source a file, declared in YAML, found by entry point.

A kind reads batches of rows behind what its manifest says is in the lake already (`source`). Which kinds there are says
the entry-point group `fieldloop.sources`, to which other packages can add (`declaration`).
"""
