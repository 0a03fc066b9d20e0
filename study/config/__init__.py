"""Turn flags and TOML files into checked values, without importing torch."""
