"""One thread, so that tests side by side do not fight over cores; tests of thread counts set their own."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
