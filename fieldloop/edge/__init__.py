"""The agent of a gateway: its own small install, which sees `fieldloop.domain` and nothing else of ours."""
