"""Programs that compare: ablations and other quantizers."""
