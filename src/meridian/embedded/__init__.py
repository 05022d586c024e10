"""The embedded cluster: one supervisor, the data plane, one PostgreSQL instance."""
