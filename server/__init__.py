"""The page and what answers over HTTP."""
