"""The only way to change what is declared, or to ask for a run or a restore."""
