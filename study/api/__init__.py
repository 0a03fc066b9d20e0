"""Offer studies to Python programs and notebooks; the command lines are a thin layer over this package."""
