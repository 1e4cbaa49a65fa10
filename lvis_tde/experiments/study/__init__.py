"""The study: training recipes, post-hoc methods and seeds, from one file to one set of tables."""
