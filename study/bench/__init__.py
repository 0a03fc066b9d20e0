"""Measure the speed of this machine and this version."""
