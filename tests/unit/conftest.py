"""Settings of all unit tests."""

from hypothesis import settings

# A machine that is busy with something else is no fault of the code: no time limit for an example.
settings.register_profile("unit", deadline=None)
settings.load_profile("unit")
