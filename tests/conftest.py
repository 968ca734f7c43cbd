"""What holds for every test: the hub is out of reach, and tokenizers fork nothing."""

import os

# before any test imports the libraries that read them
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
