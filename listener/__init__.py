"""Listening: a limited number of connections on a socket, and a small HTTP server for probes and metrics.

`slots` decides which connection to drop when there are too many, `accept` accepts connections on a socket, and `http`
serves GET and HEAD. The server and the command line use this package; it imports no other part.
"""
