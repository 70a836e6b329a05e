"""The networks, what they are trained with, and their files."""
