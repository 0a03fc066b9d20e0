"""Run a study from start to end on Ray."""
