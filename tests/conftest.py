"""What holds for every test: the hub is out of reach, tokenizers fork nothing, and networks run on
one thread, since the small ones of tests only wait for one another on more."""

import os

# before any test imports the libraries that read them
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
