"""What is measured for hours: each a command that writes a table, and goes on where it was stopped."""
