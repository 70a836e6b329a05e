"""Programs that convert weights of other formats."""
