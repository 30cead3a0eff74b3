"""Where the outputs go: files or topics, by two-phase commit."""
