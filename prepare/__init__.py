"""Programs that make a data set, and what they share."""
