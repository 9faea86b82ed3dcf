"""The command line: every command a few lines over what the other rooms already do."""
