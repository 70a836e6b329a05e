"""Words, their vectors, and which of them mean the same."""
