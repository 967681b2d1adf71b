"""Steps of acting as one call; see README.md."""
