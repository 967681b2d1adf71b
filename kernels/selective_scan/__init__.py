"""The selective scan of Mamba; see README.md."""
