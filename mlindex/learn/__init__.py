"""Training without physics: networks, their training, and how they are stored."""
