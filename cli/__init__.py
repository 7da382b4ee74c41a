"""The command line. `main` is the program; `commands/` has each command's options and help.

Parts: `up`, `agent`, `controller` and `keys` start them, `metrics` serves metrics and probes, `logs` formats log lines.
Requests: `lists`, `describing`, `history`, `problems`, `deleting`, `jobs`, `hosts`, `restoring` and `versions` carry
them out over `client`, for the objects that `types` reads from the command line; `watching` follows what changes;
`rows` and `table` lay out what comes back. `completing` completes words for a shell. `plugin` has the same commands for
kubectl, and `cluster` leads to a cluster's server. `terminal` is the only module that writes to a terminal. `options`
has the options that commands share.
"""
