"""The command line: one file a group of commands; it prints what the other rooms return."""
