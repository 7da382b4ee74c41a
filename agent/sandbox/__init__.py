"""Programs that start restic confined, so that it reaches only what its job was granted.

`launch` confines itself by the rules of `confine`, and becomes restic. `staging` has a restore written to a folder that
only root can enter, and `merge` moves it to its target. `digest` reads files for a verification. `landlock` and
`seccomp` have the kernel enforce the rules; `handles` resolves paths so that nobody can swap them. The programs run
without site-packages: nothing here imports more than the standard library.
"""
