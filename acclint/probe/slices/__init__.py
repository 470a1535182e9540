"""A loop's own statements: cut from their file without torch, and run in the measuring child with stand-ins."""
