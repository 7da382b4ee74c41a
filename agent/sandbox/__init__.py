"""Programs that the agent runs restic by, so that restic reaches what its job is granted, and nothing else.

`launch` becomes restic, confined as `confine` says; `staging` builds a restore where only root can enter, and `merge`
moves it into its place; `digest` reads files for a verification. `landlock` and `seccomp` have the kernel hold them;
`handles` finds paths without being led elsewhere. They run without site-packages: nothing here imports more than the
standard library.
"""
