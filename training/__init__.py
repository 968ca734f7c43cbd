"""Training of the video autoencoder and the diffusion transformer."""
