"""A server for all tests, and one that may be stopped; each test has a table of its own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.postgres_server import MissingPostgres, PostgresServer


@contextmanager
def _server() -> Iterator[PostgresServer]:
    try:
        server = PostgresServer()
    except MissingPostgres as error:
        pytest.skip(str(error))
    with server:
        yield server


@pytest.fixture(scope="session")
def shared_server() -> Iterator[PostgresServer]:
    with _server() as server:
        yield server


@pytest.fixture(scope="session")
def own_server() -> Iterator[PostgresServer]:
    """One that a test may stop, kill and pause, if it runs again in the end."""
    with _server() as server:
        yield server


@pytest.fixture
def name() -> str:
    """Of the test's table, with what an identifier has to be quoted for."""
    return f"T{uuid.uuid4().hex[:8]}"
