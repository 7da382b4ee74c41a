"""Makes a server follow the resources of a Kubernetes cluster, and writes their statuses.

`operator` starts it all while it holds the `lease`: `watching` runs kopf, whose events go into the `cache`; `follower`
brings what they name to the server and has the `status_writer` write what `status` works out. `kube` speaks with the
API server.
"""
