"""Runs restic: from a command of the server to the end of its job.

`runner` runs one `job` for each command, by the steps of its kind (`kinds`), in the `context` that all jobs share.
restic's input is built by `arguments` and `environment`; its output is read by `output`, `outcome` and `snapshots`;
`verify` compares restored files. These do no I/O. `hooks` decides which programs of the host may run around a job.
`process` runs a program, `transcript` keeps what it printed, and `reporter` sends progress and log to the server.
`version` finds out which restic the host has, and `readiness` what a job would find there.
"""
