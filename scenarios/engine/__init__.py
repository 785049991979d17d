"""The transaction engine, put to the test: real git, real files, killed at every step."""
