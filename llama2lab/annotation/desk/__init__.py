"""The teacher's desk: who labels now, whose work wants a look, and verdicts on what people disagree about."""
