"""What every stage stands on and no paper describes: machine, files, run folders, the training loop, statistics."""
