"""Reports: scores as tables, pages and charts."""
