"""What is measured of a run as it trains, what looks wrong, and what may help."""
