"""What all notebooks share: exercises and their checks, progress, finished runs, measurements, pictures."""
