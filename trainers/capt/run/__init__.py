"""A run's folder and what lies in it: checkpoints, features, records, what serving needs."""
