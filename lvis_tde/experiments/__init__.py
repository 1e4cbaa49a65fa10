"""Who trains what, and the tables: the demo."""
