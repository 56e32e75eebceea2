"""The farm on one machine: real servers from wheels, and the supervisor behind ``farm up``."""
