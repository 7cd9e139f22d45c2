"""Finished runs -> tidy tables."""
