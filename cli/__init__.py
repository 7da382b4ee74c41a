"""The command line. `main` is the program; `commands/` has each command's options and help.

Parts: `up`, `agent`, `controller` and `keys` start them, `metrics` serves metrics and probes, `logs` formats log lines.
Requests: `lists`, `jobs`, `hosts` and `restoring` carry them out over `client`; `rows` and `table` lay out what
comes back. `terminal` is the only module that writes to a terminal. `options` has the options that commands share.
"""
