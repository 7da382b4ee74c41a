"""Several servers as one: they know of each other, wake each other, and share what only one of them should do.

`members` keeps this server's row and finds the dead, by `watch`. `direct` is the connection by which servers wake each
other and the leader is found; `leader` runs what only that one does. `follower` brings this server up to what others
did; `news` hears of jobs and hosts. `balance` says how many agents a server sends away, and `drain` sends them.
"""
