"""Jobs, from a fire or a request to their end.

Without I/O: `fires` decides what a fire becomes, `lanes` which jobs may run now (over `job`, `lane`, `timers` and
`pieces`), `attempts` when a failed job is tried again, `resume` what follows from a hello; `arguments` makes restic's
argument lists. Around them: `dispatcher` stores, sends and ends jobs, and `reports` takes in what hosts say of them.
`repositories` and `outcomes` keep what jobs showed of repositories and Schedules; `credentials` tells hosts what opens
the repositories that their jobs need.
"""
