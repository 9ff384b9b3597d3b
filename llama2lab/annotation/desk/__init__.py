"""The teacher's desk: who labels at this moment, whose work wants a look, and verdicts on what people disagree about."""
