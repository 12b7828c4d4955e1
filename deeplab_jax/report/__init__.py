"""One page about an evaluation, `report.html`: what it says, how it looks, what it draws."""
