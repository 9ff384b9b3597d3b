"""The notebooks' own: exercises, experiments, figures and widgets, one folder for each notebook."""
