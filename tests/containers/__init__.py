"""``make containers``: the acceptance of the farm on a container engine. It needs Docker, Compose and Python alone."""
