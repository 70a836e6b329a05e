"""Networks that turn an image into its embedding."""
