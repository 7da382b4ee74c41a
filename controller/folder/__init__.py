"""Makes a server follow a folder of YAML files.

`files` finds and reads the files, `documents` reads their YAML, `declarations` works out what they declare, `follower`
has `controller.reconcile` put the server right, and `problems` and `dedup_logger` say what is wrong.
"""
