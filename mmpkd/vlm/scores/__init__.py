"""Scores of answers and of boxes: per item and task, as goals of a sweep, and of answers that look at no image.

Items are a DataFrame, one row for each question, with the columns `answer` (the true one), `response` (the student's),
`task`, `modality` and `patient`. Boxes stand inside both texts, on the grid of `mmpkd.vlm.boxes`. Nothing here imports
torch, runs Java or reads data of a library.
"""
