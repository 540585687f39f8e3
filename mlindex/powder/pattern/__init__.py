"""A measured powder pattern, or a histogram of spots, taken apart into a background and peaks."""
