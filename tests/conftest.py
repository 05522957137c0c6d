"""One thread for every test: results do not depend on the cores, and workers do not fight."""

import torch

torch.set_num_threads(1)
