"""World models on the shared core. None is in this version; see the table in README.md."""
