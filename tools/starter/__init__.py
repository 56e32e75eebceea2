"""Trains, evaluates and explains the built-in model, whose weights are in `workers/starter/`."""

from workers.torchvision_operators import declare_missing_operators

declare_missing_operators()  # before the first import of a model of transformers
