"""Files of trained classifiers for other programs."""
