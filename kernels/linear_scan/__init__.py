"""The linear scan and its backends."""
