"""What runs on a host: the link to the server, the local cron, the journal, and restic.

`core` decides everything and does no I/O. Thin shells surround it: `link` owns the socket, `scheduler` the timer, and
`journal` the file. `service` connects them and starts a job of `restic` for each command; `sandbox` confines what a job
runs. `enrolment` gives a host outside a cluster its key, and `metrics` tells Prometheus about the agent. `check` looks,
beside a running agent, whether jobs would find what they need.
"""
