"""Public benchmarks: a module for each field, each with a list ``TASKS``."""
