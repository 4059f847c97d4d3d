"""Spark jobs, run by Airflow: lake ingest, offline features, training examples, quality gates."""
