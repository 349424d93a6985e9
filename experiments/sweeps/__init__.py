"""Sweeps over the experiments, each with the table it gave."""
