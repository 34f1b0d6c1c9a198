"""Tests of both distributions, and what they share."""

import os

# Before torch is imported: its threads sleep while they wait. Otherwise each takes a core from other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
