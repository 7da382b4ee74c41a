"""The version of all parts, which are released together. `hatch version` shows and sets it."""

__version__ = "0.1.0"
