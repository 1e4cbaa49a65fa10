"""How the generated sets are made; the doors are :mod:`~lvis_tde.data.synthetic` and ``glyphs``."""
