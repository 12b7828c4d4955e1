"""`train --dry-run`: what a run computes, needs and reads; nothing is written."""
