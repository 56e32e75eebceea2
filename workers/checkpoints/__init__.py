"""Checkpoints: what the denoisers of a job returned, kept so that another attempt goes on and does not begin anew."""
