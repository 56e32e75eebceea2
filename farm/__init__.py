"""The control plane of the render farm: it accepts, stores, dispatches and reports jobs, and never imports torch."""

__version__ = "0.1.0"
