"""Makes a server's desired state equal to declared resources: those of a folder, or those of a cluster.

`folder` and `cluster` each find what is declared. What both need stands beside them: `resources` names resources and
says what they declare, `reconcile` works out what differs and puts it right, `client` speaks the server's REST. Nothing
of the server is imported: what it takes and answers is its API.
"""
