"""What the documents say of the rest of the project."""
