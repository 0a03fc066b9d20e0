"""Compute what the frozen blocks of a network give for images, on a device, and keep it for other trials."""
