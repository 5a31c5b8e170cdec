"""What a verdict leaves for people and programs: words, the page, JSON."""
