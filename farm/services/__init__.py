"""What the API, the dashboard and the adapters of other APIs do with jobs, batches and webhooks, in one place.

An endpoint reads a request and writes an answer; a service does the work between them; `farm.lifecycle` changes states
and `farm.store` has the queries. Every function takes a `ServiceContext` and the id of the tenant, and blocks.
"""
