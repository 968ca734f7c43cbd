"""The Wan-2.1 networks and their mathematics, in plain PyTorch."""
