"""Measurements, each as a ratio against what a user would do instead, in one run."""
