"""The delivery step: events to a target behind retries, timers and breakers."""
