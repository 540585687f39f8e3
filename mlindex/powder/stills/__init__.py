"""The spots of many serial stills as one powder: a histogram of q, its lines, and what they say of the geometry."""
