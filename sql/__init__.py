"""SQL, one statement a file, with ``${names}`` that come from the contract and the settings."""

from __future__ import annotations

from importlib.resources import files
from string import Template


def statement(name: str, **values: str) -> str:
    """The statement of ``sql/<name>.sql`` with its names filled in.

    Raises:
        KeyError: the statement has a name that no value was given for.
    """
    return Template(files("sql").joinpath(f"{name}.sql").read_text()).substitute(values)
