"""Everything that depends on the internals of uvicorn, h11 and websockets, and the server's TLS certificate.

`connections` has the HTTP and WebSocket protocols, and serves an application with them. `tls` makes the TLS context.
"""
