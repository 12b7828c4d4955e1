"""`report.html`, one page about an evaluation: numbers, sentences, pictures and curves."""
