"""The data plane: one process per card, and the only home of torch."""
