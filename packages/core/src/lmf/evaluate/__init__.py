"""Benchmarks: from a task and a model to figures."""
