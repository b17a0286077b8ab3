"""What is claimed about speed, runnable: `python -m bench.run`."""
