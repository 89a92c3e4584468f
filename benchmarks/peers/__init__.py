"""Peers of the benchmarks, each in its own process and, where it is a package, its own venv."""
