"""What the server shows of itself, and how long it keeps history.

`coverage` gathers how schedules and hosts stand, `problems` turns that into reasons and messages, and `controllers` has
the reports of controllers. `survey` gathers all of this for the whole fleet, and `overview` turns it into an answer.
`metrics` counts events, `state` exports gauges, and `stream` tells readers which kinds of objects have changed.
`traces` makes spans of events, where `otel` finds that somebody asks for them. `clock` notices when the clock is set
back. `history` deletes old jobs, audit lines and days.
"""
