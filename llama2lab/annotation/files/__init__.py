"""Labels as files: read, written, merged, checked."""
