"""The server's side of agents.

`session` decides without I/O: a message of an agent or a change of the desired set goes in, effects come out. `hub`
finds the session and the connection of a host, and writes effects to the connection. Sockets belong to `gateway`.
"""
