"""Frozen features -> accuracies."""
