"""What the demos and tests need: generated events, a broker, topics, a flaky service."""
