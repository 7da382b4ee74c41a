"""The control plane: what every host should hold, what it does hold, and the jobs that follow.

A change comes in by `rest` to `control`, which has `resources` check it, `desired` work out whose sets it changes, and
`store` keep it; then each host's core (`host`) says what to push, and `gateway` writes it to the host's connection. A
fire comes back through the gateway to the host's core, becomes a row (`records`) in a commit that it shares with all
that came meanwhile, and is answered with the command that `commands` made.
"""

from wire.version import __version__ as __version__
