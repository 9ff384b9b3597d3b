"""How far people agree: coefficients, quality, charts, the dashboard."""
