"""From a fire to its end: who may run now (`lanes`, no I/O), the dispatcher, restic's arguments, outcomes."""
