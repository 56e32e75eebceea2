"""Generates ``farm/pipelines/catalogue.json`` and ``docs/pipeline-classes.md`` from the installed diffusers.

``python -m workers.catalogue`` writes both; ``--check`` compares instead. Signatures, annotations, docstrings and the
auto-pipeline mappings say most of it; what they leave open is read from the source; the few facts that neither says
stand in small tables, each with its reason.
"""
