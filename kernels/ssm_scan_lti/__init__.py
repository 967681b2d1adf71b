"""The time-invariant scan of S4, S4D and DSS, and its backends."""
