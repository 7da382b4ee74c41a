"""The agents' end of the wire.

`endpoint` runs a connection from its handshake to its close, and performs the effects of the host's session. `buckets`
limits how often a host may connect and how fast it may send, `inflow` how much of
what it said may wait to be stored. `last_seen` stores when hosts were last seen.
"""
