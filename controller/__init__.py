"""Makes a server's desired state equal to the resources that a folder or a cluster declares.

`folder` and `cluster` each read what is declared. Both use `resources` for keys and resources, `reconcile` to find and
correct differences, and `client` for the server's REST API. `workqueue` decides which key to work on next. Nothing of
the server is imported: its API is the contract.
"""
