"""The declared state, and what follows from it for each host.

`catalog` has the Schedules and Repositories in force. `placement` matches schedules with hosts: it is pure data, and
owns the desired set of each host. `pushes` turns two sets into the frame that brings a host from one to the other.
`timing` says which due times a schedule has on a host, `expected` by when a schedule should have succeeded there.
"""
