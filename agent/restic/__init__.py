"""From a command of the server to the end of its job: restic, run and understood.

`runner` runs a `job` for each command, as its kind asks (`kinds`), in the `context` that all jobs share. What restic is
given and what it says is plain data: `arguments`, `environment`, `output`, `outcome`, `snapshots`, `verify`; `hooks` is
about the programs of the host around a job. `process` runs any program, `transcript` keeps what restic printed, and
`reporter` tells the server how a job goes.
"""
