"""The messages that agent and server exchange, and what both must compute alike about them.

`messages` says what may be said, `codec` turns it into frames and back within limits, `entries` holds the set of
schedules of a host: its digest, the diff of two sets, and a diff applied. `version` is the one version of all parts.
Nothing here does I/O.
"""
