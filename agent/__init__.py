"""What runs on a host: the link to the server, the local cron, the journal, and restic.

`core` decides everything and does no I/O: an event and the time go in, effects come out. `memory` is what it must not
forget, `timetable` when what is due. Around it stand thin shells: `link` owns the socket, `scheduler` the clock,
`journal` the file, `runner` the jobs; `service` joins them.

A job is a `job`: programs that `process` runs, each begun by `launch`, put together as its kind asks by `recipes`. What
a program may reach is said by `confine`, and held by `landlock` and `handles`; `staging` builds a restore, and `place`
moves it. What they print is read, and what is to be done is decided, by `restic`, `snapshots`, `verify` and `hooks`,
without I/O.
"""
