"""A job on a cluster: package, submit, upgrade, stop, savepoint, status, over Flink's REST API."""
