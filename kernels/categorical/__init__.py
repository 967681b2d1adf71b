"""Categorical latents; see README.md."""
