"""What the agent does, decided without I/O: an event and the time go in, effects come out.

`machine` is the agent as a state machine; it asks its shells for `effects`. `state` is what outlives a restart: the sum
of the journal's records. `clock` corrects the host's clock, `timetable` holds the due times, `fires` turns due times
into fires, `pushes` applies a push to the set, and `answers` tells the server the ends of earlier jobs.
"""
