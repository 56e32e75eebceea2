"""Measurements. Each prints a ratio against a named peer of the same run, and writes JSON into bench-out/."""
