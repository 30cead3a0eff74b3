"""Records and events in columns, as Python holds a batch of them."""
