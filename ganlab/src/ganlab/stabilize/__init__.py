"""What keeps the game of two networks from running away, for any task."""
