"""Makes a server follow a folder of YAML files.

`files` finds and reads the files, `documents` parses their YAML, `declarations` decides what they declare, and
`follower` passes that to `controller.reconcile`. `problems` describes what is wrong, `dedup_logger` logs it once, and
`metrics` tells Prometheus.
"""
