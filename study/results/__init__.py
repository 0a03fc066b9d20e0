"""Record what happened in a study, and say what it means, without importing torch."""
