"""Evidence by one command: runs, experiments, benchmark, and the pages that say what came of them."""
