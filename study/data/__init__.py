"""Read images into arrays."""
