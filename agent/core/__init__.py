"""What the agent does, decided without I/O: an event and the time go in, effects come out.

`machine` is the agent as a state machine, and `effects` is what it asks for. `state` is what it must not forget, as
records add up to it. `timetable` says when what is due, by the time that `clock` says counts; `fires` what is fired of
it; `pushes` what a push makes of the set; `answers` how jobs of before ended.
"""
