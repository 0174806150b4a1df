"""The networks, the tables of them, the projections and the checkpoints."""
