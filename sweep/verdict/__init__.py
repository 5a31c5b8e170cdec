"""Confirms the result of a sweep on fresh seeds and on the sealed test part."""
