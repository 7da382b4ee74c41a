"""Clients of servers that speak without TLS."""

import ssl

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Trusts nobody. Without it each client of httpx reads the authorities of this machine, for 25 ms of CPU time."""
