"""Where records come from: files or topics."""
