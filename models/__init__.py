"""Candidate sources, the multitask ranker, their evaluation, the bundle and the registry."""
