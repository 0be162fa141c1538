"""Measures what the project claims: each page of this folder is made from figures in `results`."""
