"""What a person types: `main` has the commands, `up` composes the parts, `ask` asks the server, `logs` tells."""
