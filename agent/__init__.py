"""What runs on a host: the link to the server, the local cron, the journal, and restic.

`core` decides everything and does no I/O. Around it stand thin shells: `link` owns the socket, `scheduler` the clock,
`journal` the file; `service` joins them, and hands commands to the jobs of `restic`, whose programs run in `sandbox`.
"""
