"""Imported before numpy: its products on one thread each. Here they are small, and made while pictures are drawn on all
cores; a second thread then waits for a core in the middle of each. Whoever says otherwise in the environment is heard.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
