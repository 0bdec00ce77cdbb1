"""How many examples a score is made from."""

SAMPLES = 2_500  # PacGAN's number for ring and grid (arXiv:1712.04086, section 4.1)
