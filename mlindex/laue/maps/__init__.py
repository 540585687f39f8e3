"""Scans of Laue frames: where each frame lies, what it gives its neighbours, and the maps of the whole."""
