"""What is measured of a video: each module yields names and values."""
