"""Webhooks: the guard that keeps outgoing requests out of private networks, signatures, and delivery."""
