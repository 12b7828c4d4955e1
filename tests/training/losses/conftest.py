"""Lets the tests here import `on_devices`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
