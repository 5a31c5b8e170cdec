"""The training of a vision-language student, and of the teacher that it learns from."""
