"""The decisions of delivery: lane, breaker, backoff, failure categories, pace."""
