"""What a run computes, needs and reads, told without writing anything: `train --dry-run`."""
