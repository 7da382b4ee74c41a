"""What holds for all tests."""

from hypothesis import settings

settings.register_profile("lamplighter", deadline=None)  # a loaded machine takes its time
settings.load_profile("lamplighter")
