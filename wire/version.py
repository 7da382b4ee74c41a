"""The version of all parts, which are released together: `hatch version` shows it, and sets it."""

__version__ = "0.1.0"
