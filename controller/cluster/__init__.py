"""Makes a server follow the resources of a Kubernetes cluster, and writes their statuses.

`operator` runs while it holds the `lease`: `watching` runs kopf, which passes objects to `follower`. `follower` keeps
them in the `cache`, queues their keys for `workers`, and has `sync` make the server equal to each. `results` keeps the
outcomes, `server_state` the server's answers; `status` turns both into statuses, and `status_writer` writes them, with
`events`. `expiry` says which Runs and Restores to delete. `listings` notices missed deletions, `credentials` reads
Secrets, `secret_watches` watches them, and `kube` is the client of the API server, whose address and login are in
`access`.
"""
