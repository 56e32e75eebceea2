"""The HTTP API: routes under ``/v1``, keys, and every error as ``application/problem+json``. Never imports torch."""
