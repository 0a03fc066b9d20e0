"""See what studies and caches hold and take on disk, and remove them."""
