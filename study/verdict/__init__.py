"""Say what results mean: which recipe won, and whether it beats the baseline."""
