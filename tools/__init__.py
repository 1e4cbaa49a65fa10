"""The command lines of lvis_tde; installed as ``lvis_tde.tools`` for the command ``lvis-tde``."""
