"""Kafka beside the stream: its admin client, reading committed topics, the connector's jars."""
