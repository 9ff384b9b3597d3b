"""The exercises of the notebooks: what is asked, how an answer is checked, how progress is kept."""
