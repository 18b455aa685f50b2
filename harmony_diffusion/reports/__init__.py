"""Scores as tables, pages and charts."""
