"""What the sections of the bench share."""
