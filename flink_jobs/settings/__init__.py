"""The settings: one frozen, typed object. Importing it loads neither PyFlink nor a target."""

from flink_jobs.settings.faults import SettingsError
from flink_jobs.settings.load import load_settings
from flink_jobs.settings.tables import (
    ContractSettings,
    Settings,
    SinkSettings,
    WindowSettings,
    settings_table,
)

__all__ = [
    "ContractSettings",
    "Settings",
    "SettingsError",
    "SinkSettings",
    "WindowSettings",
    "load_settings",
    "settings_table",
]
