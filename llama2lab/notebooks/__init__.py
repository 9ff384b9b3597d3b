"""What each notebook calls, a module for each: the notebook's first cell brings it by one line. Where a name comes from
is read here."""
