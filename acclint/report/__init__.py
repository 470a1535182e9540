"""One renderer per output format; each returns text and prints nothing."""
