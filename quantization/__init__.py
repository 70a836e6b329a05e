"""Codes and codebooks."""
