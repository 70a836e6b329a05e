"""Searching: the index, its shards, and whoever builds, serves and asks it."""
