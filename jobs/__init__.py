"""Entry points: each job is a config and a run(); no algorithms live here."""
