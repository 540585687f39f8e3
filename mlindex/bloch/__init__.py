"""Bloch waves: intensities of rocked electron beams, and their inversion to structure factors and thickness."""
