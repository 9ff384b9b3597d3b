"""Proofs that nothing is lost: writers killed, many annotators at once."""
