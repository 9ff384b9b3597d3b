"""The small town that stands in for the web, the vendors and the annotators."""
