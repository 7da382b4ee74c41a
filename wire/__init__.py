"""The messages between agent and server, and what both must compute in the same way. Nothing here does I/O.

`messages` defines the messages, `codec` turns them into frames and back, within limits. `entries` is a host's set of
schedules, with digests and diffs. `variables` lists the variables that a Repository may set, and `version` is the one
version of all parts.
"""
