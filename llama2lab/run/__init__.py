"""The recipe as a whole: on the town, on real text, with people's labels; the judges, and talk with what came out."""
