"""What a person types: each command's options and help. A command imports what carries it out only when it runs.

`parts` runs parts of Lamplighter; `remote` asks a server, and `overview` whether everything is backed up.
"""
