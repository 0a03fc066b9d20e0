"""Show the record in MLflow."""
