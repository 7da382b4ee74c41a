"""The agents of the fleet: a session for each host (no I/O), and the hub that finds a host's connection."""
