"""The in-context tasks of `envs/tasks` in JAX, as `jax:<Name>`."""
