"""Encodes what pipelines render, as files that contain their recipe, and decodes the inputs of jobs."""
