"""The intake step: records in, verdicts out."""
