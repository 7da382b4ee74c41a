"""The REST API, under /api/v1, for controllers, the command line and scripts; and the probes beside it.

Each resource has a file with its handlers: a handler reads the request, calls `changes` or queries the store, and
answers. `operations` is the table of what is routed (`routing`), which permissions it needs, and how it is described
(`openapi`). `requests` reads requests within limits, `answers` and `conditions` answer them, `objects` is what
schedules and repositories have in common. `middleware` stands before all of them: it authenticates callers and turns
errors into problem details. Schedules and repositories have the shape of Kubernetes' objects, so that a manifest can be
sent as it is; other resources are plain records.
"""
