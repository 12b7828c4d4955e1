"""Stages of scripts/gpu_evidence.sh: what one GPU shows about this project."""
