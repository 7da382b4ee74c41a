"""The control plane: it knows what every host should hold and what it holds, and runs the jobs that follow.

A change: someone applies a Schedule with kubectl, and the controller sends it to the server with PUT. `api` reads the
request, and `changes` checks the manifest, plans whose sets it changes (`fleet.placement`), and stores all of it in one
transaction (`store`). Then it puts the plan in force in `fleet`, tells the listeners of `events`, and lets `agents.hub`
send each connected host the diff that the host's session (`agents.session`) made.

A fire: an agent's cron ticks, and the agent sends schedule.fire. `gateway` reads it, the host's session (`agents`)
receives it, and `jobs.fires` decides whether a job follows. `jobs.dispatcher` has `store` record the job, asks
`jobs.lanes` whether it may run now, and sends command.run to the host. The end of the job comes back through `gateway`
to `jobs`, is stored, and reaches the controller as an event.

`app` builds all parts, in the order in which they depend on each other.
"""

from wire.version import __version__ as __version__
