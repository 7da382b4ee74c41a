"""What listens: sockets that hold a bounded number of connections, and a small HTTP server for probes and metrics.

`slots` decides which connection goes when there are too many, `accept` accepts connections on a socket, `http` serves
GET and HEAD. It stands at the bottom: the server and the command line use it, and it imports no part.
"""
