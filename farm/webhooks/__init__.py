"""Webhooks: payloads, signatures, retries and delivery."""
