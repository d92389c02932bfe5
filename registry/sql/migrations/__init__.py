"""The history of the schema, run by Alembic through registry.sql.schema. Never edit old steps."""
