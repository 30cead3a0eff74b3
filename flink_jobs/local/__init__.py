"""A run on this machine: Flink's process, progress, interruption, the checks before it."""
