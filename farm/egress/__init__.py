"""Connections to addresses that tenants name: checked, pinned, and never to the farm's own network."""
