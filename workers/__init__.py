"""The data plane: one process per device, and the only home of torch."""
