"""Makes a server's desired state equal to declared resources: those of a folder, by REST.

`folder` reads files and watches them, `reconcile` works out what differs and puts it right, `client` speaks the
server's REST. Nothing of the server is imported: what it takes and answers is its API.
"""
