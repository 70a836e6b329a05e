"""The page and the answers over HTTP, and their client."""
