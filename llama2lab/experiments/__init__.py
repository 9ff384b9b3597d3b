"""Experiments: the report's claims, put to the test on a finished run. One module for each notebook; an experiment is
a function of a finished run (`lab.finished.Finished`) that gives plain figures, {"mean", "low", "high", "n"}.

`llama2lab experiments RUN` measures all of them, keeps each in RUN/experiments/ and can be stopped and started again.
"""
