"""What is played with: an explorer, two games, a photograph of one's own."""
