"""What runs on a host: the link to the server, the local cron, the journal, and restic.

`core` decides everything and does no I/O: an event and the time go in, effects come out. `memory` is what it must not
forget, `timetable` when what is due. Around it stand thin shells: `link` owns the socket, `scheduler` the clock,
`journal` the file, `runner` the processes (`restic` reads what they print); `service` joins them.
"""

__version__ = "0.1.0"
