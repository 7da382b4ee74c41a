"""The agents' end of the wire: a WebSocket connection from its handshake to its close."""
