"""Laue frames: every grain of a white-beam pattern, its orientation and its deviatoric strain."""
