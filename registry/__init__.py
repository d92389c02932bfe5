"""The registry: what is true and how it changes. Never imports the resolver."""
