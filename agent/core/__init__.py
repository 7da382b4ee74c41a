"""What the agent does, decided without I/O: an event and the time go in, effects come out.

`machine` is the agent as a state machine; `state` is what it must not forget, and the records that this adds up from;
`timetable` says when what is due.
"""
