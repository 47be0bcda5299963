"""What latent-variable families are built from: p(z), networks over events, and the cells that a decoder describes."""
