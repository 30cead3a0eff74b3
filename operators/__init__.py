"""Steps of the stream: thin shells around the rules."""
