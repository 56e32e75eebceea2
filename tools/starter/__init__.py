"""Trains, evaluates and explains the built-in model, whose weights are in `workers/starter/`."""
