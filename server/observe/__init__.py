"""What is told of the server: metrics, state, coverage, troubles, and how long history is kept."""
