"""A student that answers questions about an image and points with boxes: a vision-language model (VLM)."""
