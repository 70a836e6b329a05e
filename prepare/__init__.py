"""Programs that prepare data sets, weights and image encoders, and what they share."""
