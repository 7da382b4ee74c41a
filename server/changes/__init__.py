"""The only way to change what is declared, a host's key, or to request a run, a restore or a list.

Each file plans the changes of one kind of object, and gives them to the `pipeline`. `load` puts in force what is stored
when a server starts."""
